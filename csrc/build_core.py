"""Build ``vmbusirq._core`` from ``vmbusirq_api.h``: the one text that both the compiler and cffi read."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI
from setuptools import Extension
from setuptools.command.build_ext import build_ext as _build_ext

HERE = Path(__file__).resolve().parent

# What C may call in Python. A trampoline per kind of callee, never one per object: the object travels as a handle.
CALLBACKS = """
extern "Python" uint32_t vi_py_handler(struct vi_cpu *cpu, uint32_t irq, void *dev_id);
extern "Python" void vi_py_batch(struct vi_cpu *cpu, uint32_t n, const uint32_t *irqs, uint32_t *results);
extern "Python" void vi_py_chip_call(struct vi_cpu *cpu, uint32_t irq, uint32_t op);
extern "Python" uint32_t vi_py_channel_callback(struct vi_cpu *cpu, uint32_t irq, void *context);
extern "Python" void vi_py_message(struct vi_cpu *cpu, const struct vi_message *msg);
extern "Python" void vi_py_stimer(struct vi_cpu *cpu, const struct vi_message *msg);
extern "Python" void vi_py_packet(struct vi_cpu *cpu, void *handle, const struct vi_packet *packet);
extern "Python" void vi_py_trace(void *context, const struct vi_trace_event *event);
extern "Python" void vi_py_report(struct vi_cpu *cpu, uint32_t what, uint32_t irq, uint32_t value);
"""


def cdef_text() -> str:
    """Return the interface header as cffi wants it: the one attribute word taken out, the callbacks added."""
    api = (HERE / "vmbusirq_api.h").read_text(encoding="utf-8")
    return api.replace("VI_MUST_CHECK ", "") + CALLBACKS


def builder() -> FFI:
    """Return the configured cffi builder of ``vmbusirq._core``."""
    ffi = FFI()
    ffi.cdef(cdef_text())
    ffi.set_source("vmbusirq._core", '#include "internals.h"\n')
    return ffi


class build_ext(_build_ext):  # noqa: N801 - the name setuptools looks up
    """Emit the cffi wrapper into the build folder, then compile as usual."""

    def build_extension(self, ext: Extension) -> None:
        """Compile ``ext`` with the wrapper among its sources."""
        out = Path(self.build_temp)
        out.mkdir(parents=True, exist_ok=True)
        wrapper = out / "_core_cffi.c"
        builder().emit_c_code(str(wrapper))
        ext.sources = [*ext.sources, str(wrapper)]
        super().build_extension(ext)
