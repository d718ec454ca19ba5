"""stub"""
from vmbusirq.host.ic import REQUESTS
from vmbusirq.host.vsp.generic import GenericVsp
from vmbusirq.wire.devices import CLASS_IDS, UNSUPPORTED_CLASS_IDS
from uuid import UUID

def make_vsp(name):
    v = GenericVsp(name, {**CLASS_IDS, **UNSUPPORTED_CLASS_IDS}.get(name) or UUID("00000000-facb-11e6-bd58-64006a7986d3"), chn_flags=0x2000 if name == "hv_sock" else 0)
    v.bulk_template = REQUESTS.get(name, b"")
    return v
