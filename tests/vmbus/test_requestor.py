"""Request ids (vmbus.md 1.14): the table against a plain model."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbusirq.errors import IrqError
from vmbusirq.vmbus import requestor as names
from vmbusirq.vmbus.requestor import RQST_ADDR_ANY, RQST_ERROR, Requestor

ADDRESS = st.integers(0, (1 << 64) - 3)


def test_sentinels() -> None:
    """Counted down from U64_MAX; netvsc and storvsc use the third for different things (vmbus.md 1.14)."""
    top = 1 << 64
    assert [top - 1, top - 2, top - 3] == [names.NO_RQSTOR, names.RQST_ERROR, names.RQST_ID_NO_RESPONSE]
    assert [top - 3, top - 4] == [names.RQST_INIT, names.RQST_RESET]
    assert top - 1 == RQST_ADDR_ANY


def test_ids_begin_at_1_and_end_at_size() -> None:
    """0 is kept for what the host sends unasked."""
    table = Requestor(3)
    assert [1, 2, 3, RQST_ERROR] == [table.next_id(address) for address in (10, 11, 12, 13)]
    assert 3 == len(table)


def test_the_id_given_back_last_goes_out_first() -> None:
    """Free slots are a stack."""
    table = Requestor(4)
    ids = [table.next_id(address) for address in range(4)]
    assert [1, 2] == [table.release(ids[1]), table.release(ids[2])]
    assert [ids[2], ids[1], RQST_ERROR] == [table.next_id(9) for _ in range(3)]


def test_nobody_has_an_empty_table() -> None:
    """EINVAL."""
    with pytest.raises(IrqError) as caught:
        Requestor(0)
    assert errno.EINVAL == caught.value.errno


@given(
    st.integers(1, 6),
    st.lists(
        st.one_of(
            st.tuples(st.just("next"), ADDRESS),
            st.tuples(st.just("release"), st.integers(0, 9) | st.integers(0, (1 << 64) - 1), st.none() | ADDRESS),
            st.tuples(st.just("match"), st.integers(1, 6)),
        ),
        max_size=60,
    ),
)
def test_any_order_agrees_with_a_dictionary(size: int, actions: list[tuple]) -> None:
    """Ids that are out are unique, stand for what was kept, and nothing else is ever taken."""
    table, model, free = Requestor(size), {}, list(range(size, 0, -1))
    for action in actions:
        if action[0] == "next":
            expected = free.pop() if free else RQST_ERROR
            assert expected == table.next_id(action[1])
            if expected != RQST_ERROR:
                model[expected] = action[1]
        else:
            trans_id = action[1]
            address = model.get(trans_id, 5) if action[0] == "match" else action[2]
            is_good = trans_id in model and address in (None, model.get(trans_id))
            expected = model.pop(trans_id) if is_good else RQST_ERROR
            if is_good:
                free.append(trans_id)
            assert expected == (table.release(trans_id) if address is None else table.release(trans_id, address))
        assert len(model) == len(table)
