"""Interactive pages: one HTML file with plots and structures in 3D, without network access.

Needs ``pip install lkm-calc[report]``: plotly draws the plots and chemiscope the structures.
"""

from .contents import Block as Block
from .contents import Code as Code
from .contents import Page as Page
from .contents import Plot as Plot
from .contents import Table as Table
from .libraries import PageError as PageError
from .libraries import check_packages as check_packages
from .structures import Scene as Scene
from .structures import SceneFrame as SceneFrame
from .writing import page_text as page_text
from .writing import write_page as write_page
