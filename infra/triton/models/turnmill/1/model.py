"""What Triton's Python backend loads; the same in each version's folder."""

import triton_python_backend_utils as pb_utils

from turnmill.workers.engines.triton.model import ServedModel


class TritonPythonModel(ServedModel):
    backend = pb_utils
