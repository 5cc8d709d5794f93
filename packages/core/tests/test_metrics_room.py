"""Files of metrics have the disk's promise for every page, or lie in memory: a full disk must end no service."""

import errno
import os
import subprocess

import pytest

from posttrain.core.metrics_room import FIRST_BYTES, roomy

mmap_dict = pytest.importorskip("prometheus_client.mmap_dict")
Roomy = roomy(mmap_dict.MmapedDict)


def written(file):
    """Bytes that the disk holds for a file, or has promised."""
    return os.stat(file).st_blocks * 512


def test_a_file_has_all_its_room_from_the_start_and_when_it_grows(tmp_path):
    file = tmp_path / "counter_1.db"
    values = Roomy(str(file))
    assert written(file) >= FIRST_BYTES == file.stat().st_size
    for number in range(2000):
        values.write_value(f"a metric with a rather long name {number}", float(number), 0.0)
        assert written(file) >= file.stat().st_size
    assert file.stat().st_size > FIRST_BYTES
    again = {key: value for key, value, *_ in Roomy(str(file), read_mode=True)._read_all_values()}
    assert again["a metric with a rather long name 1999"] == 1999.0


def test_a_file_without_room_is_kept_in_memory_and_not_shown(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    values = Roomy(str(tmp_path / "gauge_1.db"))
    values.write_value("metric", 3.0, 0.0)
    assert values.read_value("metric")[0] == 3.0
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="No space left"):  # of a request, which costs no more than itself
        for number in range(2000):
            values.write_value(f"a metric with a rather long name {number}", 0.0, 0.0)


def test_what_is_written_is_what_prometheus_reads(tmp_path):
    Roomy(str(tmp_path / "counter_1.db")).write_value("metric", 7.0, 1.0)
    (found,) = mmap_dict.MmapedDict.read_all_values_from_file(str(tmp_path / "counter_1.db"))
    assert found[:2] == ("metric", 7.0)


def test_a_file_system_that_promises_nothing_shows_its_metrics_all_the_same(tmp_path, monkeypatch):
    def cannot(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    shown_though_it_grows(tmp_path)
    monkeypatch.delattr(os, "posix_fallocate")  # as on macOS
    shown_though_it_grows(tmp_path)


def test_a_file_system_in_memory_that_knows_no_promises_shows_its_metrics(tmp_path):
    """For real, as glibc then does it: ramfs, which root may mount."""
    folder = tmp_path / "ramfs"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "ramfs", "ramfs", folder], check=False).returncode:
        pytest.skip("only root may mount a file system")
    try:
        shown_though_it_grows(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def shown_though_it_grows(folder):
    file = folder / "counter_1.db"
    values = Roomy(str(file))
    for number in range(2000):
        values.write_value(f"a metric with a rather long name {number}", float(number), 0.0)
    assert len(list(mmap_dict.MmapedDict.read_all_values_from_file(str(file)))) == 2000
    file.unlink()
