# SPDX-License-Identifier: BSD-3-Clause
"""The hardware handoff (``.hwh``) of the shell around the core, as pynq's parsers read it.

It describes the block design that the bitstream scripts build: processing system, AXI DMA, core, interrupt
controller. What the parsers need was found by taking every element away in turn; nothing else is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.etree import ElementTree as ET

from .. import codegen, spec
from . import axi_dma
from .boards import Board

__all__ = ["CORE", "DMA", "INTC", "Address", "hwh"]


class Address(NamedTuple):
    """An IP's place on the general-purpose port."""

    instance: str
    interface: str
    base: int
    size: int = 0x1_0000


PS = "processing_system7_0"
CORE = Address("circ_core_0", "s_axi_control", 0x43C0_0000)
DMA = Address("axi_dma_0", "S_AXI_LITE", 0x4040_0000)
INTC = Address("axi_intc_0", "s_axi", 0x4180_0000)
CONCAT = "xlconcat_0"
INTERRUPTS = ((DMA.instance, "mm2s_introut"), (DMA.instance, "s2mm_introut"), (CORE.instance, "interrupt"))
"""Inputs of the interrupt controller, in order."""

DMA_PARAMETERS = {
    "c_include_sg": 0,
    "c_micro_dma": 0,
    "c_sg_length_width": 26,
    "c_include_mm2s": 1,
    "c_include_s2mm": 1,
    "c_include_mm2s_dre": 0,
    "c_include_s2mm_dre": 0,
    "c_m_axi_mm2s_data_width": 64,
    "c_m_axi_s2mm_data_width": 64,
    "c_addr_width": 32,
}
_MM, _STREAM = "xilinx.com:interface:aximm:1.0", "xilinx.com:interface:axis:1.0"
_RW, _RO = "read-write", "read-only"
_DMACR = {"RS": 0, "Reset": 2, "Keyhole": 3, "IOC_IrqEn": 12, "Dly_IrqEn": 13, "Err_IrqEn": 14}
_DMASR = {"Halted": 0, "Idle": 1, "SGIncld": 3, "DMAIntErr": 4, "DMASlvErr": 5, "DMADecErr": 6, "IOC_Irq": 12,
          "Dly_Irq": 13, "Err_Irq": 14}  # fmt: skip
_INTC = {"ISR": _RW, "IPR": _RO, "IER": _RW, "IAR": "write-only", "SIE": _RW, "CIE": _RW, "IVR": _RO,
         "MER": _RW}  # fmt: skip


def _sub(parent: ET.Element, tag: str, **attributes: object) -> ET.Element:
    return ET.SubElement(parent, tag, {k: str(v) for k, v in attributes.items()})


def _register(parent: ET.Element, name: str, offset: int, access: str, fields: Mapping[str, int]) -> None:
    def properties(element: ET.Element, **values: object) -> None:
        for key, value in ({"DESCRIPTION": element.get("NAME"), "ACCESS": access} | values).items():
            _sub(element, "PROPERTY", NAME=key, VALUE=value)

    register = _sub(parent, "REGISTER", NAME=name)
    properties(register, ADDRESS_OFFSET=hex(offset), SIZE=32, IS_ENABLED="true")
    group = _sub(register, "FIELDS")
    width = 1 if len(fields) > 1 else 32
    for field, lsb in fields.items():
        properties(_sub(group, "FIELD", NAME=field), BIT_OFFSET=lsb, BIT_WIDTH=width)


def _dma_registers() -> ET.Element:
    group = ET.Element("REGISTERS")
    for channel, base in axi_dma.OFFSETS.items():
        name, address = channel.upper(), "SA" if channel == "mm2s" else "DA"
        _register(group, f"{name}_DMACR", base + axi_dma.CONTROL, _RW, _DMACR)
        _register(group, f"{name}_DMASR", base + axi_dma.STATUS, _RW, _DMASR)
        for suffix, offset in ((address, axi_dma.ADDRESS), ("LENGTH", axi_dma.LENGTH)):
            _register(group, f"{name}_{suffix}", base + offset, _RW, {suffix: 0})
    return group


def _intc_registers() -> ET.Element:
    group = ET.Element("REGISTERS")
    for index, (name, access) in enumerate(_INTC.items()):
        _register(group, name, 4 * index, access, {name: 0})
    return group


def _module(
    modules: ET.Element,
    instance: str,
    vlnv: str,
    parameters: Mapping[str, object],
    *,
    ports: Sequence[tuple[str, str, str, str]] = (),
    interfaces: Sequence[tuple[str, str, str]] = (),
    registers: tuple[Address, ET.Element] | None = None,
    memory: Sequence[tuple[Address, str, str]] = (),
    is_pl: bool = True,
) -> None:
    """One MODULE.

    Parameters
    ----------
    modules : the element that gets it.
    instance, vlnv, parameters : as in the block design.
    ports : scalar ports as (name, direction, peer, peer's port).
    interfaces : bus interfaces as (name, type, VLNV).
    registers : where they are, and the REGISTERS element.
    memory : address ranges as (what, through which master, of which type).
    is_pl : False for the processing system.
    """
    name = vlnv.split(":")[2]
    module = _sub(modules, "MODULE", FULLNAME=f"/{instance}", INSTANCE=instance, IPTYPE="PERIPHERAL",
                  IS_ENABLE=1, MODCLASS="PERIPHERAL", MODTYPE=name, VLNV=vlnv)  # fmt: skip
    if not is_pl:
        module.set("IS_PL", "FALSE")
    if registers:
        address, group = registers
        blocks = _sub(module, "ADDRESSBLOCKS")
        block = _sub(blocks, "ADDRESSBLOCK", ACCESS=_RW, INTERFACE=address.interface, NAME="Reg",
                     RANGE=address.size, USAGE="register")  # fmt: skip
        block.append(group)
    element = _sub(module, "PARAMETERS")
    for key, value in parameters.items():
        _sub(element, "PARAMETER", NAME=key, VALUE=value)
    element = _sub(module, "PORTS")
    for port, direction, peer, peer_port in ports:
        p = _sub(element, "PORT", DIR=direction, NAME=port, SIGIS="INTERRUPT", SIGNAME=f"{instance}_{port}")
        _sub(_sub(p, "CONNECTIONS"), "CONNECTION", INSTANCE=peer, PORT=peer_port)
    element = _sub(module, "BUSINTERFACES")
    for interface, kind, bus in interfaces:
        _sub(element, "BUSINTERFACE", NAME=interface, TYPE=kind, VLNV=bus)
    if memory:
        element = _sub(module, "MEMORYMAP")
        for address, master, kind in memory:
            _sub(element, "MEMRANGE", ADDRESSBLOCK="Reg", BASENAME="C_BASEADDR", HIGHNAME="C_HIGHADDR",
                 BASEVALUE=f"0x{address.base:08X}", HIGHVALUE=f"0x{address.base + address.size - 1:08X}",
                 INSTANCE=address.instance, IS_DATA="TRUE", MASTERBUSINTERFACE=master, MEMTYPE=kind,
                 SLAVEBUSINTERFACE=address.interface)  # fmt: skip


def _ps_parameters(board: Board, clock_mhz: float) -> dict[str, object]:
    result: dict[str, object] = {"PCW_UIPARAM_DDR_ENABLE": 1, "PCW_USE_S_AXI_HP0": 1}
    for n in range(4):
        first, second = board.divisors(clock_mhz)
        result |= {
            f"PCW_FCLK{n}_PERIPHERAL_DIVISOR0": first,
            f"PCW_FCLK{n}_PERIPHERAL_DIVISOR1": second,
            f"PCW_FPGA_FCLK{n}_ENABLE": int(n == 0),
            f"PCW_FCLK{n}_PERIPHERAL_CLKSRC": "IO PLL",
        }
    # pynq 4 sets clocks from this parameter only, though it belongs to another family's processing system.
    actual = round(board.io_pll_mhz / (first * second), 6)
    return result | {"PSU__CRL_APB__PL0_REF_CTRL__ACT_FREQMHZ": actual}


def hwh(board: Board, clock_mhz: float) -> bytes:
    """The hardware handoff for a board and a clock, as UTF-8 XML; equal arguments give equal bytes.

    Raises
    ------
    ValueError
        The board cannot make the clock.
    """
    root = ET.Element("EDKSYSTEM", EDWVERSION="1.2", TIMESTAMP="", VIVADOVERSION="none")
    _sub(root, "SYSTEMINFO", ARCH="zynq", DEVICE=board.device, NAME="circ", PACKAGE=board.package,
         SPEEDGRADE=board.speed_grade)  # fmt: skip
    _sub(root, "EXTERNALPORTS")
    _sub(root, "EXTERNALINTERFACES")
    modules = _sub(root, "MODULES")
    slaves = (DMA, CORE, INTC)
    _module(
        modules, PS, "xilinx.com:ip:processing_system7:5.5", _ps_parameters(board, clock_mhz),
        ports=[("IRQ_F2P", "I", INTC.instance, "irq")],
        interfaces=[("M_AXI_GP0", "MASTER", _MM), ("S_AXI_HP0", "SLAVE", _MM)],
        memory=[(slave, "M_AXI_GP0", "REGISTER") for slave in slaves],
        is_pl=False,
    )  # fmt: skip
    ddr = Address(PS, "S_AXI_HP0", 0, 512 << 20)
    inputs = {source: f"In{n}" for n, source in enumerate(INTERRUPTS)}

    def irq(instance: str) -> list[tuple[str, str, str, str]]:
        return [(pin, "O", CONCAT, inputs[(owner, pin)]) for owner, pin in INTERRUPTS if owner == instance]

    _module(
        modules, DMA.instance, axi_dma.VLNV, DMA_PARAMETERS, ports=irq(DMA.instance),
        interfaces=[(DMA.interface, "SLAVE", _MM), ("M_AXI_MM2S", "MASTER", _MM),
                    ("M_AXI_S2MM", "MASTER", _MM), ("M_AXIS_MM2S", "INITIATOR", _STREAM),
                    ("S_AXIS_S2MM", "TARGET", _STREAM)],
        registers=(DMA, _dma_registers()),
        memory=[(ddr, master, "MEMORY") for master in ("M_AXI_MM2S", "M_AXI_S2MM")],
    )  # fmt: skip
    _module(
        modules, CORE.instance, spec.CORE_VLNV, {}, ports=irq(CORE.instance),
        interfaces=[(CORE.interface, "SLAVE", _MM), ("in_stream", "TARGET", _STREAM),
                    ("out_stream", "INITIATOR", _STREAM)],
        registers=(CORE, ET.fromstring(codegen.hwh_registers())),
    )  # fmt: skip
    _module(
        modules, INTC.instance, "xilinx.com:ip:axi_intc:4.1",
        {"C_NUM_INTR_INPUTS": len(INTERRUPTS), "C_KIND_OF_INTR": "0x00000000"},
        ports=[("intr", "I", CONCAT, "dout"), ("irq", "O", PS, "IRQ_F2P")],
        interfaces=[(INTC.interface, "SLAVE", _MM)], registers=(INTC, _intc_registers()),
    )  # fmt: skip
    _module(
        modules, CONCAT, "xilinx.com:ip:xlconcat:2.1", {"NUM_PORTS": len(INTERRUPTS)},
        ports=[*((name, "I", *source) for source, name in inputs.items()),
               ("dout", "O", INTC.instance, "intr")],
    )  # fmt: skip
    ET.indent(root)
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root) + b"\n"
