import pytest
import torch
from safetensors.torch import save_file

from instseg.core.categories import Categories
from instseg.core.errors import CheckpointError
from instseg.weights.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

CHECKPOINT = Checkpoint(
    "solov2_r18",
    {"num_classes": 1, "grids": [4]},
    Categories(("nucleus",), (3,)),
    {"w": torch.arange(6.0)},
    {"ap": 0.5},
)


def test_a_checkpoint_is_read_as_it_was_written(tmp_path):
    write_checkpoint(tmp_path / "a.safetensors", CHECKPOINT)
    again = read_checkpoint(tmp_path / "a.safetensors")
    assert (again.model, again.config, again.categories, again.extra) == (
        CHECKPOINT.model,
        CHECKPOINT.config,
        CHECKPOINT.categories,
        CHECKPOINT.extra,
    )
    assert torch.equal(again.state["w"], CHECKPOINT.state["w"])


def test_half_precision_is_read_as_float32(tmp_path):
    write_checkpoint(tmp_path / "a.safetensors", CHECKPOINT, half=True)
    assert read_checkpoint(tmp_path / "a.safetensors").state["w"].dtype == torch.float32


@pytest.mark.parametrize("keep", [0, 4, 40, 0.5, 0.99])
def test_a_truncated_file_is_refused_in_one_line(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, CHECKPOINT)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="truncated or not ours") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_file_of_another_program_is_refused(tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="not written by instseg"):
        read_checkpoint(tmp_path / "b.safetensors")
    torch.save({"w": torch.zeros(1)}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="truncated or not ours"):
        read_checkpoint(tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "d.safetensors")


def test_a_failed_write_leaves_the_older_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, CHECKPOINT)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_checkpoint(path, CHECKPOINT)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
