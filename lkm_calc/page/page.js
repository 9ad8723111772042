"use strict";
(async () => {
  const element = (id) => document.getElementById(id);

  async function unpack(name) {
    const text = element(`pack-${name}`).textContent;
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  async function load(name) {
    const script = document.createElement("script");
    script.textContent = await unpack(name);
    document.head.append(script);
  }

  // Predicted values or errors of a parity plot; the reference line has no customdata.
  function ordinate(trace, error) {
    const last = (values) => values[values.length - 1];
    return trace.x.map((x, k) => (error ? 0 : x) + (trace.customdata ? last(trace.customdata[k]) : 0));
  }

  const axis = (plot, error) => plot.layout.meta[error ? "error" : "predicted"];

  function choose(plot) {
    const button = (label, error) => ({
      label,
      method: "update",
      args: [
        { y: plot.data.map((trace) => ordinate(trace, error)) },
        { "yaxis.title.text": axis(plot, error), "xaxis.autorange": true, "yaxis.autorange": true },
        plot.data.map((_, k) => k),
      ],
    });
    plot.layout.updatemenus = [{
      type: "buttons", direction: "right", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom",
      pad: { b: 2 }, font: { size: 12 }, buttons: [button("predicted", false), button("error", true)],
    }];
    plot.data.forEach((trace) => { trace.y = ordinate(trace, false); });
    plot.layout.yaxis.title = { text: axis(plot, false) };
  }

  const data = JSON.parse(await unpack("data"));
  // chemiscope contains another plotly and removes the style sheet of any that is loaded before.
  if (data.dataset !== null) await load("chemiscope");
  await load("plotly");
  const linked = [];
  for (const [k, plot] of data.plots.entries()) {
    if (plot.parity) choose(plot);
    const traces = plot.data.filter((trace) => trace.customdata);
    const chosen = traces.length ? [{
      type: traces[0].type.replace("bar", "scatter"), mode: "markers", x: [], y: [], showlegend: false, hoverinfo: "skip",
      marker: { symbol: "circle-open", size: 9, color: "#000", line: { width: 1.5 } },
    }] : [];
    const yaxis = { ...plot.layout.yaxis, automargin: true };
    const layout = { ...plot.layout, yaxis, margin: { l: 62, r: 12, t: 34, b: 46 }, hovermode: "closest" };
    const options = { responsive: true, displaylogo: false, scrollZoom: true };
    await Plotly.newPlot(`plot-${k}`, [...plot.data, ...chosen], layout, options);
    if (traces.length) linked.push(element(`plot-${k}`));
  }
  window.page = { linked, shown: null };
  if (data.dataset === null) return;

  for (const property of Object.values(data.dataset.properties)) {
    property.values = property.values.map((value) => value ?? NaN);
  }
  const warnings = new Chemiscope.Warnings();
  warnings.addHandler((message) => console.warn(message));
  const places = { structure: "viewer", info: "info", meta: "meta" };
  const viewer = await Chemiscope.StructureVisualizer.load(places, data.dataset, warnings);

  // Mark the points of the shown structure, and say what it is.
  function mark({ structure, atom }) {
    window.page.shown = { structure, atom };
    element("caption").textContent = data.captions[structure];
    data.legends[structure].forEach((text, k) => { element(`legend-${k}`).textContent = text; });
    for (const row of document.querySelectorAll("tr[data-structure]")) {
      row.classList.toggle("selected", Number(row.dataset.structure) === structure);
    }
    for (const plot of linked) {
      const last = plot.data.length - 1;
      const [x, y] = [[], []];
      for (const trace of plot.data.slice(0, last)) {
        trace.customdata?.forEach((values, k) => {
          if (values[0] === structure) { x.push(trace.x[k]); y.push(trace.y[k]); }
        });
      }
      Plotly.restyle(plot, { x: [x], y: [y] }, [last]);
    }
  }

  function show(structure, atom) {
    const chosen = atom < 0 ? data.focus[structure] : atom;
    const indexes = viewer.indexer.fromStructureAtom("atom", structure, chosen);
    viewer.select(indexes);
    mark(indexes);
  }

  for (const plot of linked) {
    plot.on("plotly_click", (event) => {
      const point = event.points.find((candidate) => candidate.customdata);
      if (point && point.customdata[0] >= 0) show(point.customdata[0], point.customdata[1]);
    });
    plot.on("plotly_buttonclicked", () => setTimeout(() => mark(window.page.shown)));
  }
  for (const row of document.querySelectorAll("tr[data-structure]")) {
    const open = () => {
      show(Number(row.dataset.structure), -1);
      element("scene").scrollIntoView({ block: "nearest" });
    };
    row.addEventListener("click", open);
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") open(); });
  }
  const { onchange } = viewer.info;
  viewer.info.onchange = (indexes) => { onchange(indexes); mark(indexes); };
  const { onselect } = viewer.structure;
  viewer.structure.onselect = (indexes) => { onselect(indexes); mark(indexes); };
  window.page.viewer = viewer;
  show(0, -1);
})().catch((error) => {
  const failure = document.getElementById("failure");
  failure.hidden = false;
  failure.textContent = `The page cannot be shown: ${error}. It needs a browser of 2023 or newer with WebGL.`;
  throw error;
});
