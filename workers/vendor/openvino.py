"""Holds on OpenVINO: imported without its telemetry.

OpenVINO reports every import to its makers, unless the module that does so is missing. Import
`openvino_genai` from here.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino_genai  # noqa: E402

READ_IN = {"openvino": "2026.4.1"}
HOLDS = {"openvino.tools.ovc.telemetry_utils:init_ovc_telemetry": "5fde951301b0"}

__all__ = ["openvino_genai"]
