"""The command line: ``adtn demo | devices | calibrate | plan | fit | compress | kv | inspect | bench``."""

from ._app import app as app
from ._app import main as main
