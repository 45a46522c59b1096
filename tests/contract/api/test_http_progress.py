"""How far a batch is: rule X9 of `docs/compatibility.md`, and the metrics page."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from batchline.api.services import BackendHealth
from batchline.domain.attempts import Outcome
from batchline.domain.lifecycle import BatchStatus
from batchline.domain.model import Batch
from batchline.domain.waiting import of_fault, of_rate
from batchline.service.pace_meter import PaceMeter
from batchline.service.running import Running
from batchline.service.waits import Known
from batchline.store.database import Database
from tests.contract.api.serving import ApiServer, assert_usual_headers
from tests.contract.store_rows import OTHER_PROJECT, brought_to, claimed, settling, started
from tests.unit.test_docs_reference import first_cells

SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\]|\\.)*",?)*)\})? (\S+)')
DOWN = of_fault(Outcome.NOT_SENT, "no connection: connection refused")
SHED = of_fault(Outcome.SHED, "status 429")


class Hand:
    """A steady clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def under_way(api: ApiServer, store: Database, *, seconds: int = 60) -> Batch:
    """A batch of 10 lines, 6 of which came at an even pace."""
    batch = await started(store)
    clock = Hand()
    running = Running(batch=batch, unsettled=2, meter=PaceMeter(batch.counts, clock=clock))
    shard = await claimed(store, batch)
    running.meter.claimed(shard)
    running.held.add(shard.key.number)
    for line in range(6):
        clock.now = line * seconds / 5
        commit = settling(shard, finished=range(line + 1))
        await store.commit("w", [commit], now=int(api.clock.now))
        running.meter.committed(commit)
    api.runs.running[batch.id] = running
    return await store.load_batch(batch.id)


@pytest.mark.rule("X9")
async def test_a_running_batch_has_a_rate_and_an_end_with_its_band(
    api: ApiServer, store: Database
) -> None:
    batch = await under_way(api, store)
    before = await api.request("GET", f"/v1/batches/{batch.id}")
    reply = await api.request("GET", f"/v1/batches/{batch.id}/progress")
    assert reply.status == 200
    assert_usual_headers(reply)
    now = int(api.clock.now)
    found = reply.json
    assert list(found) == [
        *("object", "batch_id", "status", "at", "request_counts", "rate_per_s", "tokens_per_s"),
        *("expected_end_at", "expected_end_low", "expected_end_high", "ended_at", "expires_at"),
        "waiting",
    ]
    assert (found["object"], found["batch_id"], found["at"]) == ("batch.progress", batch.id, now)
    assert found["request_counts"] == before.json["request_counts"]
    assert found["expires_at"] == before.json["expires_at"]
    assert found["rate_per_s"] == pytest.approx(5 / 60, abs=0.001)
    left = batch.counts.total - 6
    assert found["expected_end_at"] - now == pytest.approx(left * 12, abs=2)
    assert now < found["expected_end_low"] < found["expected_end_at"] < found["expected_end_high"]
    assert (found["ended_at"], found["waiting"]) == (None, [])


@pytest.mark.rule("X9")
@pytest.mark.parametrize("status", BatchStatus)
async def test_a_batch_in_any_status_has_an_answer(
    api: ApiServer, store: Database, status: BatchStatus
) -> None:
    batch = await brought_to(store, status)
    found = (await api.request("GET", f"/v1/batches/{batch.id}/progress")).json
    assert found["status"] == status
    unknown = ("rate_per_s", "tokens_per_s", "expected_end_at", "expected_end_low")
    assert [found[name] for name in (*unknown, "expected_end_high")] == [None] * 5
    at_its_end = getattr(batch, f"{status}_at", None)
    over = status in ("completed", "failed", "expired", "cancelled")
    assert found["ended_at"] == (at_its_end if over else None)
    reasons = [wait["code"] for wait in found["waiting"]]
    assert reasons == (["validating"] if status == "validating" else [])


@pytest.mark.rule("X9")
async def test_a_file_that_waits_for_its_turn_is_told_from_one_that_is_read(
    api: ApiServer, store: Database
) -> None:
    batch = await brought_to(store, BatchStatus.VALIDATING)
    said = []
    for being_checked in ((), (batch.id,), None):
        api.known = Known(being_checked=being_checked)
        found = (await api.request("GET", f"/v1/batches/{batch.id}/progress")).json
        (wait,) = found["waiting"]
        said.append((wait["code"], wait["message"]))
    read = ("validating", "its input file is being checked")
    assert said == [
        ("validating", "its input file waits for its turn to be checked"),
        read,
        read,
    ]


@pytest.mark.rule("X9")
async def test_while_a_backend_is_in_the_way_it_is_named_and_no_end_is_foretold(
    api: ApiServer, store: Database
) -> None:
    batch = await under_way(api, store)
    api.known = Known(gated={"only": DOWN})
    found = (await api.request("GET", f"/v1/batches/{batch.id}/progress")).json
    assert found["waiting"] == [
        {
            "code": "backend_unreachable",
            "message": "backend only cannot be reached: connection refused",
            "backend": "only",
        }
    ]
    assert found["rate_per_s"] is not None
    ends = ("expected_end_at", "expected_end_low", "expected_end_high")
    assert [found[name] for name in ends] == [None] * 3


@pytest.mark.rule("X9")
async def test_a_rate_limit_is_a_pace_at_which_the_end_is_told(
    api: ApiServer, store: Database
) -> None:
    batch = await under_way(api, store)
    api.known = Known(gated={"only": of_rate("60 requests a minute")})
    found = (await api.request("GET", f"/v1/batches/{batch.id}/progress")).json
    assert [wait["code"] for wait in found["waiting"]] == ["rate_limit"]
    assert found["expected_end_at"] is not None


@pytest.mark.rule("X9")
async def test_a_batch_whose_turn_it_is_not_says_so_and_nothing_of_the_others(
    api: ApiServer, store: Database
) -> None:
    ahead = await under_way(api, store)
    batch = await started(store)
    behind = Running(batch=batch, unsettled=1, meter=PaceMeter(batch.counts))
    behind.put_back(0, "m", quarantine=False)
    api.runs.running[batch.id] = behind
    reply = await api.request("GET", f"/v1/batches/{batch.id}/progress")
    assert [wait["code"] for wait in reply.json["waiting"]] == ["others_first"]
    assert ahead.id.encode() not in reply.body


# -- metrics -------------------------------------------------------------------------------------


def samples(text: str) -> dict[tuple[str, str], float]:
    """Every sample by its name and labels; anything that is neither one nor a comment fails."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            sample = SAMPLE.fullmatch(line)
            assert sample is not None, line
            found[sample[1], sample[2] or ""] = float(sample[3])
    return found


@pytest.mark.rule("X10")
async def test_the_metrics_have_the_server_and_the_running_batches(
    api: ApiServer, store: Database
) -> None:
    batch = await under_way(api, store)
    told = (await api.request("GET", f"/v1/batches/{batch.id}/progress")).json
    gone = [BackendHealth(name='a "b"\\', state="gated", reason="takes no more")]
    up = BackendHealth(name="x", state="up")
    api.readiness = replace(api.readiness, backends=[*gone, up], workers_wanted=2, damaged=3)
    reply = await api.request("GET", "/metrics")
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = samples(reply.body.decode())
    of_batch = f'batch_id="{batch.id}"'
    assert found["batchline_backend_up", 'backend="a \\"b\\"\\\\",state="gated"'] == 0
    assert found["batchline_backend_up", 'backend="x",state="up"'] == 1
    assert found["batchline_damaged_total", ""] == 3
    assert found["batchline_workers_wanted", ""] == 2
    assert found["batchline_batch_lines", f'{of_batch},state="completed"'] == 6
    left = batch.counts.total - 6
    assert found["batchline_batch_lines", f'{of_batch},state="left"'] == left
    rate = found["batchline_batch_lines_per_second", of_batch]
    assert rate == pytest.approx(told["rate_per_s"], abs=0.001)
    for bound, name in (("low", "low"), ("likely", "at"), ("high", "high")):
        key = ("batchline_batch_expected_end_timestamp_seconds", f'{of_batch},bound="{bound}"')
        assert found[key] == pytest.approx(told[f"expected_end_{name}"], abs=1)
    assert found["batchline_batch_expires_timestamp_seconds", of_batch] == batch.expires_at


@pytest.mark.rule("X10")
async def test_a_waiting_batch_has_a_series_for_each_reason(
    api: ApiServer, store: Database
) -> None:
    batch = await under_way(api, store)
    api.known = Known(paused="disk_low", gated={"only": SHED})
    found = samples((await api.request("GET", "/metrics")).body.decode())
    waiting = {labels for name, labels in found if name == "batchline_batch_waiting"}
    of_batch = f'batch_id="{batch.id}"'
    assert waiting == {
        f'{of_batch},reason="disk_low",backend=""',
        f'{of_batch},reason="backend_shed",backend="only"',
    }
    assert not [name for name, _ in found if "expected_end" in name]


@pytest.mark.rule("X10")
async def test_the_metrics_have_no_batch_of_another_project(
    api: ApiServer, store: Database
) -> None:
    batch = await under_way(api, store)
    api.runs.running[batch.id].batch = replace(batch, project_id=OTHER_PROJECT)
    reply = await api.request("GET", "/metrics")
    assert b"batchline_build_info" in reply.body
    assert batch.id.encode() not in reply.body


@pytest.mark.rule("X10")
async def test_a_batch_that_was_stopped_has_its_counts_and_neither_pace_nor_end(
    api: ApiServer, store: Database
) -> None:
    batch = await under_way(api, store)
    api.known = Known(gated={"only": SHED})
    api.runs.running[batch.id].stopped = True
    found = samples((await api.request("GET", "/metrics")).body.decode())
    of_it = {name for name, labels in found if batch.id in labels}
    assert of_it == {"batchline_batch_lines", "batchline_batch_expires_timestamp_seconds"}


async def test_a_scrape_looks_once_at_what_all_batches_have_however_many_it_shows(
    api: ApiServer, store: Database
) -> None:
    for _ in range(3):
        await under_way(api, store)
    api.runs.looks = 0
    found = samples((await api.request("GET", "/metrics")).body.decode())
    of_each = {labels for name, labels in found if name.endswith("expires_timestamp_seconds")}
    assert len(of_each) == 3
    assert api.runs.looks == 1


async def test_every_series_is_documented_and_has_its_type(api: ApiServer) -> None:
    """If this fails, put the series into docs/reference/progress.md."""
    text = (await api.request("GET", "/metrics")).body.decode()
    helped = re.findall(r"^# HELP (\w+) \S", text, re.M)
    assert helped == first_cells("progress.md", "Metrics")
    assert re.findall(r"^# TYPE (\w+) (?:gauge|counter)$", text, re.M) == helped
