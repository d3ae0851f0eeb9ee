"""What OpenVINO is asked to open: weights in the bits that the settings say, or a clear refusal."""

from pathlib import Path

import pytest

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings import EngineSettings
from turnmill.workers.engines.openvino.setup import openvino_path, properties


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A folder that looks like an exported model."""
    for name in ("config.json", "openvino_model.xml"):
        (tmp_path / name).write_text("{}")
    return tmp_path


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_an_exported_model_cannot_be_given_other_weights(exported: Path, bits: str) -> None:
    settings = EngineSettings.model_validate({"model": str(exported), "quantization": bits})
    with pytest.raises(SettingsError, match="TURNMILL_ENGINE__QUANTIZATION"):
        openvino_path(settings)
    assert openvino_path(EngineSettings(model=str(exported))) == exported


def test_nf4_is_refused_with_what_there_is(exported: Path) -> None:
    with pytest.raises(SettingsError, match="int8 or int4"):
        openvino_path(EngineSettings(model=str(exported), quantization="nf4"))


def test_full_precision_leaves_activations_in_32_bits() -> None:
    assert properties(EngineSettings(dtype="float32", quantization="int4")) == {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }
    assert properties(EngineSettings(kv_cache_dtype="int8")) == {"KV_CACHE_PRECISION": "u8"}
