"""What the figures were measured on."""

import os
import subprocess


def first_line(argv):
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
        return done.stdout.split("\n", maxsplit=1)[0].strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def proc_value(path, key):
    with open(path, encoding="ascii", errors="replace") as f:
        for line in f:
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def free_bytes():
    return int(proc_value("/proc/meminfo", "MemAvailable").split()[0]) * 1024


def file_system(path):
    return first_line(["stat", "-f", "-c", "%T", path])


def thp():
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled", encoding="ascii") as f:
            return f.read().split("[")[1].split("]")[0]
    except OSError:
        return "none"


def describe(out_dir):
    return {
        "cpus": os.cpu_count(),
        "cpu": proc_value("/proc/cpuinfo", "model name"),
        "virtual": "hypervisor" in proc_value("/proc/cpuinfo", "flags").split(),
        "memory_bytes": int(proc_value("/proc/meminfo", "MemTotal").split()[0]) * 1024,
        "memory_free_bytes": free_bytes(),
        "kernel": os.uname().release,
        "transparent_huge_pages": thp(),
        "qemu": first_line(["qemu-system-x86_64", "--version"]),
        "zstd": first_line(["zstd", "--version"]).strip("*"),
        "file_system": file_system(out_dir),
        "load_at_start": os.getloadavg()[0],
    }


def line(machine):
    """One paragraph for people."""
    where = "a virtual machine itself" if machine["virtual"] else "bare metal"
    return (f"{machine['cpus']} CPUs ({machine['cpu']}; {where}), "
            f"{machine['memory_bytes'] / (1 << 30):.0f} GiB, Linux {machine['kernel']}, huge pages "
            f"{machine['transparent_huge_pages']}, {machine['qemu']}, images on "
            f"{machine['file_system']}; load at the start {machine['load_at_start']:.1f}")
