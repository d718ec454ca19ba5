from vmbusirq.vmbus.drivers.base import Driver
from vmbusirq.vmbus.drivers.catalogue import CATALOGUE


def _m(n):
    return type(n, (Driver,), {"name": n})


DRIVERS = {d.driver: _m(d.driver) for d in CATALOGUE.values()}
