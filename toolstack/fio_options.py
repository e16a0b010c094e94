"""What each option of a job file means for a load.

Owns: which options are known, fio's names and other names for them, their units, and which make no
difference here: what is on the other side is a virtual disk, not a file of this host's.
An option that is in neither list is refused, as is a value that asks for what is not there.
"""

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from toolstack.fio_units import (
    block_sizes,
    each_way,
    seconds,
    size_in_bytes,
    size_or_share,
    truth,
    whole,
)
from toolstack.load_fields import VDEVS

Settings = dict[str, Any]


class Said(NamedTuple):
    """An option as it stands in a line of the file; value: "" if it has none."""

    line: int
    name: str
    value: str


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


RW: Final = {
    "read": "read", "write": "write", "trim": "trim", "rw": "rw", "readwrite": "rw",
    "randread": "randread", "randwrite": "randwrite", "randtrim": "randtrim", "randrw": "randrw",
}  # fmt: skip
OTHER_NAMES: Final = {
    "readwrite": "rw", "blocksize": "bs", "timeout": "runtime", "read_iolog": "replay",
}  # fmt: skip

# They say how fio goes about it on a host, or how it tells of it.
NO_EFFECT: Final = _words(
    """
    allow_file_create allow_mounted_write buffered bwavgtime clat_percentiles clocksource
    continue_on_error cpumask cpus_allowed cpus_allowed_policy create_fsync create_on_open
    create_serialize description direct directory disable_bw_measurement disable_clat disable_lat
    disable_slat disk_util do_verify error_dump fadvise_hint fallocate fallocate_mode
    filename_format gtod_cpu gtod_reduce group_reporting hipri hugepage-size invalidate
    io_submit_mode iodepth_batch iodepth_batch_complete iodepth_batch_complete_max
    iodepth_batch_complete_min iodepth_batch_submit iodepth_low iomem iomem_align iopsavgtime
    lat_percentiles loglevel mem mem_align new_group nice norandommap nrfiles openfiles
    percentile_list per_job_logs pre_read prio prioclass random_generator randrepeat
    refill_buffers registerfiles scramble_buffers serialize_overlap slat_percentiles softrandommap
    sqthread_poll stats thread threads unified_rw_reporting unlink unlink_each_loop
    userspace_reap verify_async verify_dump verify_fatal write_bw_log write_iops_log write_lat_log
    log_avg_msec log_offset zero_buffers name
    """
)

# Those that read and write a disk: here that is blkfront's work, whichever is named.
ENGINES: Final = _words(
    """
    sync psync vsync pvsync pvsync2 libaio posixaio solarisaio windowsaio io_uring io_uring_cmd
    mmap splice sg null cpp_null nbd libblkio ime_psync ime_psyncv ime_aio
    """
)

VERIFIES: Final = _words(
    """
    md5 crc64 crc32c crc32c-intel crc32 crc16 crc7 xxhash sha512 sha256 sha1 sha3-224 sha3-256
    sha3-384 sha3-512 meta pattern 1
    """
)


def meaning(said: Said, settings: Settings) -> bool:
    """Put into `settings` (LoadSpec's, and `numjobs`, `stonewall`, `filename`) what an option says;
    False if it makes no difference. Raises ValueError if it cannot be had.
    """
    if said.name in NO_EFFECT:
        return False
    name = OTHER_NAMES.get(said.name, said.name)
    if name not in OPTIONS:
        raise ValueError("no such option here")
    if name not in BARE and not said.value:
        raise ValueError("has no value")
    OPTIONS[name](settings, said.value)
    return name != "ioengine"


def _sets(name: str, parse: Callable[[str], Any]) -> Callable[[Settings, str], None]:
    def option(settings: Settings, value: str) -> None:
        settings[name] = parse(value)

    return option


def _rw(settings: Settings, value: str) -> None:
    if value.lower() not in RW:
        known = ", ".join(RW)
        raise ValueError(f"'{value}' is not one of {known}")
    settings["rw"] = RW[value.lower()]


def _bs(settings: Settings, value: str) -> None:
    """Of reads and writes: where they differ, that is a bssplit."""
    reads, writes = (size_in_bytes(part) for part in each_way(value))
    settings.pop("bssplit", None)
    settings["bs"] = reads
    if reads != writes:
        settings["bssplit"] = (((reads, 100.0),), ((writes, 100.0),))


def _bsrange(settings: Settings, value: str) -> None:
    low, _, high = value.replace(":", "-").partition("-")
    if size_in_bytes(low) != size_in_bytes(high or low):
        raise ValueError(f"'{value}' is a range; bssplit names sizes")
    _bs(settings, low)


def _bssplit(settings: Settings, value: str) -> None:
    settings["bssplit"] = block_sizes(value)


def _rwmixwrite(settings: Settings, value: str) -> None:
    settings["rwmixread"] = 100 - whole(value)


def _runtime(settings: Settings, value: str) -> None:
    settings["runtime_s"] = seconds(value) or None


def _startdelay(settings: Settings, value: str) -> None:
    settings["startdelay_s"] = seconds(value)


def _thinktime(settings: Settings, value: str) -> None:
    settings["thinktime"] = round(seconds(value, "us") * 1e6)


def _verify(settings: Settings, value: str) -> None:
    if value.lower() not in (*VERIFIES, "null", "0"):
        raise ValueError(f"'{value}' is no way of fio's to verify")
    settings["verify"] = value.lower() in VERIFIES


def _verify_pattern(_: Settings, __: str) -> None:
    raise ValueError("what is written is always our own pattern, which tells each write apart")


def _filename(settings: Settings, value: str) -> None:
    """Disks, or files, for each of which `toolstack/fio_job.py` finds a disk."""
    names = [_disk_or_file(name) for name in re.split(r"(?<!\\):", value)]
    if len(set(names)) < len(names):
        raise ValueError("names one twice")
    settings["filename"] = tuple(names)


def _disk_or_file(name: str) -> str:
    disk = name.removeprefix("/dev/")
    if disk not in VDEVS and (name.startswith("/dev/") or "://" in name or not name):
        raise ValueError(f"'{name}' is no disk of a guest's: {VDEVS[0]}..{VDEVS[-1]}")
    return disk


def _ioengine(_: Settings, value: str) -> None:
    if value.lower() not in ENGINES:
        raise ValueError(f"'{value}' does not only read and write a disk")


def _numjobs(settings: Settings, value: str) -> None:
    if not 1 <= whole(value) <= 256:
        raise ValueError(f"{value} is not in 1..256")
    settings["numjobs"] = whole(value)


def _loops(settings: Settings, value: str) -> None:
    settings["loops"] = whole(value) or 1


def _random_distribution(settings: Settings, value: str) -> None:
    settings["random_distribution"] = value.lower()


OPTIONS: Final[dict[str, Callable[[Settings, str], None]]] = {
    "rw": _rw,
    "bs": _bs,
    "bsrange": _bsrange,
    "bssplit": _bssplit,
    "iodepth": _sets("iodepth", whole),
    "numjobs": _numjobs,
    "size": _sets("size", size_or_share),
    "offset": _sets("offset", size_or_share),
    "number_ios": _sets("ios", whole),
    "runtime": _runtime,
    "time_based": _sets("time_based", truth),
    "ramp_time": _sets("ramp_time_s", seconds),
    "startdelay": _startdelay,
    "loops": _loops,
    "rwmixread": _sets("rwmixread", whole),
    "rwmixwrite": _rwmixwrite,
    "rate_iops": _sets("rate_iops", str),
    "random_distribution": _random_distribution,
    "randseed": _sets("seed", whole),
    "verify": _verify,
    "verify_pattern": _verify_pattern,
    "thinktime": _thinktime,
    "thinktime_blocks": _sets("thinktime_blocks", whole),
    "fsync": _sets("fsync", whole),
    "fdatasync": _sets("fsync", whole),
    "stonewall": _sets("stonewall", truth),
    "filename": _filename,
    "ioengine": _ioengine,
    "replay": _sets("replay", str),
    "replay_no_stall": _sets("replay_no_stall", truth),
}
BARE: Final = ("time_based", "stonewall", "replay_no_stall", "verify")
