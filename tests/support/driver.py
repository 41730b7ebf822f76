"""A stand-in for the NVIDIA driver's library."""

import subprocess
from pathlib import Path

_SOURCE = """
#include <stdio.h>
#include <stdlib.h>
static int setting(const char *name, int otherwise) { char *s = getenv(name); return s ? atoi(s) : otherwise; }
int cuDriverGetVersion(int *version) { *version = setting("DRIVER_CUDA", 99000); return 0; }
int cuInit(unsigned flags) { return setting("DRIVER_FAILS", 0); }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int n, int device) { snprintf(name, n, "GPU %c", 'A' + device); return 0; }
int cuGetErrorString(int code, const char **text) { *text = "no CUDA-capable device is detected"; return 0; }
/* what onnxruntime's provider is linked to, and what CUDA's runtime asks for first, without getting it */
int cuTensorMapEncodeTiled(void) { return 1; }
int cuGetProcAddress_v2(void) { return 500; }
"""


def build_driver(compiler: str, folder: Path) -> Path:
    """Put a libcuda.so.1 into a folder for LD_LIBRARY_PATH; the fixture `stand_in_driver` says how it answers."""
    (folder / "driver.c").write_text(_SOURCE)
    line = [compiler, "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(folder / "driver.c")]
    subprocess.run(line, check=True)
    return folder
