"""Which way the gradients of a run are computed."""

import pytest
import torch

from train.config import Config, LossConfig, RunConfig
from train.gradients import DoubleBackward, GradientFunction, gradient_function
from train.gradients.compiled import CompiledGradients
from train.gradients.cuda_graphs import CUDAGraphGradients
from train.gradients.first_order import KernelGradients

from ...support import small_model

CASES = [
    ("ace", {}, {}, False, KernelGradients),
    ("ace", {"compile": True}, {}, False, KernelGradients),
    ("ace", {"cuda_graphs": True}, {}, False, CUDAGraphGradients),
    ("ace", {"kernels": "off"}, {}, False, DoubleBackward),
    ("ace", {"kernels": "off", "compile": True}, {}, False, CompiledGradients),
    ("ace", {}, {}, True, DoubleBackward),
    ("ace", {}, {"lkm_teacher": "error"}, False, DoubleBackward),
    ("ace", {}, {"raw_energies": True}, False, DoubleBackward),
    ("pamnet", {}, {}, False, KernelGradients),
    ("mxmnet", {}, {}, False, KernelGradients),
    ("dimenet++", {}, {}, False, KernelGradients),
    ("pamnet", {"compile": True}, {}, True, CompiledGradients),
]


@pytest.mark.parametrize(("name", "run", "loss", "isolated", "kind"), CASES)
def test_what_a_run_uses(name, run, loss, isolated, kind):
    model = small_model(name)
    config = Config(run=RunConfig(**run), loss=LossConfig(**loss))
    plain = DoubleBackward(lambda *arguments: pytest.fail("not asked for"), torch.zeros(()))
    found = gradient_function(config, model, model, plain, plain.losses, isolated)
    assert type(found) is kind
    assert isinstance(found, GradientFunction)
    assert found.padded == (kind in (CUDAGraphGradients, CompiledGradients))
