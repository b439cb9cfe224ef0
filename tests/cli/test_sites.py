from typer.testing import CliRunner

from llm_adapters.cli import app
from llm_adapters.cli.sites import _ranges


def test_sites_shows_what_a_method_would_train_without_weights() -> None:
    result = CliRunner().invoke(
        app, ["sites", "smollm2-135m-instruct", "-m", "lora", "--set", "rank=4", "--set", "sites=[attn.q]"]
    )
    assert result.exit_code == 0, result.output
    assert "model.layers.*.self_attn.q_proj" in result.output
    assert f"{30 * 4 * (576 + 576):,} parameters" in result.output


def test_layer_ranges() -> None:
    assert _ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


def test_methods_lists_every_method_and_its_fields() -> None:
    listed = CliRunner().invoke(app, ["methods"]).output
    for name in ("lora", "series", "series_input", "parallel", "scaled_parallel", "houlsby", "pfeiffer", "prefix"):
        assert name in listed
    assert "rank = 8" in CliRunner().invoke(app, ["methods", "lora"]).output
