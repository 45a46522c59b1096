"""Where settings come from, which of them wins, and what is said about wrong ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from batchline.cli.network_disk import network_file_system
from batchline.cli.serve_output import start_up
from batchline.config.backends import base_url_of
from batchline.config.loading import data_directory, env_name_of, load
from batchline.config.projects import ProjectSettings
from batchline.config.reach import check_reach, is_loopback
from batchline.config.settings import ServerSettings, Settings, default_of, scalars
from batchline.config.values import window_s
from batchline.domain.attempts import RetryPolicy
from batchline.domain.errors import ConfigError
from batchline.domain.plan import Order
from batchline.executor.catalogue import BackendReport, Reach
from batchline.executor.contract import AbortCall, BackendSettings, CancelBy, Concurrency

EVERYWHERE = "0.0.0.0"  # noqa: S104  # nothing is bound here
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"

A_FILE = """
workers = 2
windows = ["24h", "3s", "1h"]
allow_mixed_models = true

[server]
port = 9000

[cancel]
grace_s = 3

[retry]
max_attempts = 7

[[backend]]
name = "big"
base_url = "https://gpu.example/openai"
api_key_env = "GPU_KEY"
models = ["m1", "m2"]
max_in_flight = 200
connect_timeout_s = 2
headers = { X-Team = "a" }

[projects.research]
weight = 3

[projects."nightly-jobs"]
weight = 0.5
identical_requests = "run_once"

[projects.other]

[aliases]
"gpt-4o-mini" = "m1"

[[backend]]
base_url = "http://127.0.0.1:8000"
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "batchline.toml"
    file.write_text(text, encoding="utf-8")
    return file


def with_call(call: str, cancel: str = "call") -> str:
    """A backend with that `abort_call`."""
    return f'[[backend]]\nbase_url = "x"\ncancel = "{cancel}"\nabort_call = {{ {call} }}'


def with_limit(settings: str) -> str:
    """A backend with those settings."""
    return f'[[backend]]\nbase_url = "x"\n{settings}'


def adaptive(settings: str) -> str:
    """One whose limit is learnt."""
    return with_limit(f'concurrency = "adaptive"\n{settings}')


def test_a_backend_whose_limit_is_learnt(tmp_path: Path) -> None:
    (backend,) = load(config=written(tmp_path, adaptive("priority = -3"))).backends
    assert backend.concurrency is Concurrency.ADAPTIVE
    assert (backend.min_in_flight, backend.max_in_flight) == (1, 1024)
    assert (backend.interactive_slowdown, backend.priority) == (1.3, -3)
    bounds = "min_in_flight = 8\nmax_in_flight = 8\ninteractive_slowdown = 0"
    (backend,) = load(config=written(tmp_path, adaptive(bounds))).backends
    assert (backend.min_in_flight, backend.max_in_flight) == (8, 8)
    assert backend.interactive_slowdown == 0


def test_a_backend_that_is_called_to_abort(tmp_path: Path) -> None:
    call = """path = "/abort_request", body = '{"rid": "{id}"}', id_field = "rid" """
    (backend,) = load(config=written(tmp_path, with_call(call)), environ={}).backends
    assert backend.cancel is CancelBy.CALL
    assert backend.abort_call == AbortCall(path="/abort_request", id_field="rid")


def test_without_anything_the_defaults_hold() -> None:
    assert load(environ={}) == Settings()
    assert Settings().server.host == "127.0.0.1"
    assert Settings().windows == {"24h": 86400}


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    settings = load(config=written(tmp_path, A_FILE), environ={"GPU_KEY": "sk-1"})
    assert settings.workers == 2
    assert settings.windows == {"24h": 86400, "3s": 3, "1h": 3600}
    assert settings.allow_mixed_models
    assert settings.server.port == 9000
    assert settings.cancel.grace_s == 3.0
    assert isinstance(settings.cancel.grace_s, float)
    assert settings.retry == RetryPolicy(max_attempts=7)
    assert settings.aliases == {"gpt-4o-mini": "m1"}
    assert settings.projects == {
        "research": ProjectSettings(weight=3.0),
        "nightly-jobs": ProjectSettings(weight=0.5, identical_requests="run_once"),
        "other": ProjectSettings(),
    }
    assert settings.backends == (
        BackendSettings(
            name="big",
            base_url="https://gpu.example/openai/v1",
            models=("m1", "m2"),
            max_in_flight=200,
            connect_timeout_s=2.0,
            headers={"X-Team": "a", "Authorization": "Bearer sk-1"},
        ),
        BackendSettings(
            name="127.0.0.1:8000", base_url="http://127.0.0.1:8000/v1", asks_places=True
        ),
    )


def test_the_command_line_wins_over_the_environment_over_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "workers = 2\n[server]\nport = 2\n[cancel]\ngrace_s = 2\nack_s = 2")
    environ = {"BATCHLINE_SERVER_PORT": "3", "BATCHLINE_CANCEL_GRACE_S": "3.5"}
    settings = load(config=file, options={"server.port": 4, "workers": None}, environ=environ)
    assert settings.server.port == 4
    assert settings.cancel.grace_s == 3.5
    assert settings.cancel.ack_s == 2.0
    assert settings.workers == 2
    assert settings.cancel.cap_s == 600.0


def test_upstreams_stand_in_for_the_backends_of_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, '[[backend]]\nbase_url = "http://file:1"')
    env = {"BATCHLINE_UPSTREAM": "http://env:1, http://env:2/v1", "BATCHLINE_CONFIG": str(file)}

    def names(settings: Settings) -> list[str]:
        return [backend.name for backend in settings.backends]

    assert names(load(config=file, environ={})) == ["file:1"]
    assert names(load(environ=env)) == ["env:1", "env:2"]
    assert names(load(environ=env, upstreams=["cli:1", "cli:2"])) == ["cli:1", "cli:2"]


def test_every_setting_can_come_from_the_environment() -> None:
    texts = {int: "2097152", float: "1.5", bool: "true", str: "127.0.0.2", Path: "elsewhere"}
    texts[Order] = "file"
    env = {env_name_of(key): texts.get(kind, "2h,3s") for key, kind in scalars()}
    env |= {"BATCHLINE_SERVER_PORT": "2", "BATCHLINE_WORKERS": "3"}
    env["BATCHLINE_SCHEDULING_URGENT_SHARE"] = "0.5"
    settings = load(environ=env)
    for key, _ in scalars():
        value: object = settings
        for part in key.split("."):
            value = getattr(value, part)
        assert value != default_of(key), key


def test_probes_come_from_the_environment_only(tmp_path: Path) -> None:
    assert load(environ={"BATCHLINE_PROBES": "a=kill"}).probes == "a=kill"
    with pytest.raises(ConfigError, match="probes: unknown"):
        load(config=written(tmp_path, 'probes = "a=kill"'), environ={})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("worker = 2", r"batchline\.toml: worker: expected a table"),
        ("wokers = 2", r"wokers: unknown; allowed here: .*workers"),
        (
            "backends = 2",
            r"unknown; .*\[\[backend\]\], \[aliases\], \[projects.NAME\], allow_mixed",
        ),
        ("[cancle]\ngrace_s = 1", r"cancle: unknown; allowed here: .*\[cancel\]"),
        ("[cancle]", r"cancle: unknown"),
        ("[cancel]\ngrace = 1", r"cancel\.grace: unknown; .*cancel\.grace_s"),
        ('workers = "2"', r"workers: expected a whole number, got '2'"),
        ("workers = true", r"workers: expected a whole number"),
        ("workers = 0", r"workers: expected a whole number from 1"),
        ("workers = 257", r"workers: expected a whole number from 1 to 256, got 257"),
        (
            f"[limits]\nmax_lines = {10**30}",
            r"max_lines: expected a whole number up to 10{15}, got",
        ),
        (f"[worker]\nbyte_budget = {10**400}", r"byte_budget: .* up to 10{15}, got 10{39}…"),
        (f"[worker]\nsegment_bytes = 0x{'f' * 5000}", r"segment_bytes: .*, got a far larger one"),
        ("[retention]\noutput_s = 1000000001", r"output_s: .* up to 1000000000, got 1000000001"),
        ("[cancel]\ngrace_s = 1e300", r"grace_s: expected a number up to 1000000000, got 1e\+300"),
        ("[server]\nport = 65536", r"server\.port: .*from 0 to 65535"),
        ("[cancel]\ngrace_s = -1", r"cancel\.grace_s: expected a number from 0"),
        ("[cancel]\ngrace_s = inf", r"cancel\.grace_s: expected a number"),
        ("[cancel]\ngrace_s = nan", r"cancel\.grace_s: expected a number"),
        ("[cancel]\ncap_s = 0", r"cancel\.cap_s: .*above 0"),
        ("allow_mixed_models = 1", r"allow_mixed_models: expected true or false"),
        ('order = "best"', r"order: expected one of file, prefix, long_outputs, got 'best'"),
        ('windows = "24h"', r"windows: expected a list"),
        ("windows = []", r"windows: expected a list of texts with at least one"),
        ('windows = ["1 day"]', r"windows: '1 day' is not a number followed by"),
        ('windows = ["11575d"]', r"windows: '11575d' is longer than 11574d"),
        ("[disk]\nlow_water_bytes = 2\nhigh_water_bytes = 1", r"disk\.high_water_bytes"),
        ("backend = 1", r"backend: expected tables, \[\[backend\]\]"),
        ("[[backend]]", r"\[\[backend\]\] 1: base_url: missing"),
        (
            '[[backend]]\nbase_url = "x"\nurl = 1',
            r"\[\[backend\]\] 1: url: unknown; allowed: .*name",
        ),
        ('[[backend]]\nbase_url = "ftp://x"', r"base_url: .*not an http"),
        ('[[backend]]\nbase_url = "http://a..b"', r"base_url: 'a..b' is no name of a host"),
        ('[[backend]]\nbase_url = "http://u:p@x"', r"base_url: x: .*no credentials"),
        ('[[backend]]\nbase_url = "x"\nmax_in_flight = 0', r"max_in_flight: .*from 1"),
        (with_limit('concurrency = "auto"'), r"one of fixed, adaptive, got 'auto'"),
        (with_limit("min_in_flight = 2"), r"min_in_flight: means nothing without"),
        (with_limit("interactive_slowdown = 2"), r"slowdown: means nothing without"),
        (adaptive("min_in_flight = 9\nmax_in_flight = 8"), r"min_in_flight: above max_in_flight"),
        (adaptive("interactive_slowdown = 0.9"), r"slowdown: expected 1 or more, or 0, got 0.9"),
        (with_limit("priority = 0.5"), r"priority: expected a whole number"),
        ('[[backend]]\nbase_url = "x"\ntotal_timeout_s = 0', r"total_timeout_s: .*above 0"),
        (
            '[[backend]]\nbase_url = "x"\nweight = 0',
            r"weight: expected a number from 0.001 to 1000",
        ),
        (
            '[[backend]]\nbase_url = "x"\nweight = 1e308',
            r"weight: .*from 0.001 to 1000, got 1e\+308",
        ),
        ('[[backend]]\nbase_url = "x"\nhealth_s = 1e-9', r"health_s: expected a number from 0.1"),
        ('[[backend]]\nbase_url = ""', r"base_url: expected a text that is not empty"),
        ('[[backend]]\nbase_url = "x"\nname = "a\\nb"', r"1: name: expected a text of one line"),
        ('[[backend]]\nbase_url = "x"\nname = " a"', r"1: name: .* without blanks around it"),
        ('[[backend]]\nbase_url = "x"\ntransport = "h2"', r"one of auto, http1, general, got 'h2'"),
        ('[[backend]]\nbase_url = "https://x"\ntransport = "http1"', r"speaks http:// only"),
        (
            '[[backend]]\nbase_url = "x"\nkeep_partial = true',
            r"1: keep_partial: only of answers that are streamed; set stream",
        ),
        ('[[backend]]\nbase_url = "x"\nmodels = []', r"models: expected a list"),
        ('[[backend]]\nbase_url = "x"\napi_key_env = "NO_KEY"', r"variable NO_KEY is not set"),
        ('[[backend]]\nbase_url = "x"\nheaders = { A = 1 }', r"headers: A: expected a text"),
        ('[[backend]]\nbase_url = "x"\nheaders = { A = "b\\nc" }', r"headers: .*control character"),
        ('[[backend]]\nbase_url = "x"\nheaders = { Host = "h" }', r"'Host' may not be set"),
        *(
            (
                f'[[backend]]\nbase_url = "x"\nheaders = {{ {name} = "h" }}',
                f"'{name}' may not be set",
            )
            for name in ("Idempotency-Key", "Content-Encoding", "Upgrade", "TE", "keep-alive")
        ),
        (
            '[[backend]]\nbase_url = "x"\ncancel = "kill"',
            r"cancel: expected close, drain, call, got",
        ),
        ('[[backend]]\nbase_url = "x"\ncancel = "call"', r"abort_call: cancel = .call. needs it"),
        (with_call('path = "/a/{id}"', "close"), r"abort_call: means nothing without"),
        (with_call('body = "{}"'), r"abort_call: path: missing"),
        (with_call('path = "/a/{id}", rid = "x"'), r"abort_call: rid: unknown; allowed: path"),
        (with_call('path = "/a", body = "1"'), r"neither path nor body has \{id\}"),
        (with_call('path = "a/{id}"'), r"path: expected one on the backend's host"),
        (with_call('path = "/a/{id}", body = "{"'), r"body: is not JSON"),
        (with_call('path = "/a", id_field = "model"'), r"id_field: every request has"),
        (with_call('path = "/a", id_header = "a b"'), r"id_header: header 'a b'"),
        (with_call('path = "/a", id_header = "Idempotency-Key"'), r"says something else"),
        ('[[backend]]\nbase_url = "x"\n[[backend]]\nbase_url = "x"', r"two backends are named 'x'"),
        ("aliases = 1", r"aliases: expected a table"),
        ("projects = 1", r"projects: expected tables, \[projects.NAME\]"),
        ("projects.a = 1", r"projects.a: expected a table"),
        ('[projects."a b"]\nweight = 1', r"projects: no project can be called 'a b': 1 to 64"),
        ('[projects.""]\nweight = 1', r"projects: no project can be called ''"),
        ("[projects.a]\nwait = 1", r"projects.a: wait: unknown; allowed: weight, identical"),
        (
            "[projects.a]\nidentical_requests = true",
            r"projects.a: identical_requests: expected one of run_each, run_once, got True",
        ),
        ("[projects.a]\nweight = 0", r"projects.a: weight: expected a number from 0.001 to 1000"),
        ("[projects.a]\nweight = 1e-300", r"projects.a: weight: expected a number from 0.001"),
        ("[projects.a]\nweight = 1001", r"projects.a: weight: expected a number from 0.001"),
        ('[projects.a]\nweight = "3"', r"projects.a: weight: expected a number"),
        ("[scheduling]\nurgent_share = 1", r"urgent_share: expected a number from 0 to 0.9"),
        ("[aliases]\na = 1", r"aliases: a: expected the name"),
        ('[aliases]\na = ""', r"aliases: a: expected the name"),
        ('[aliases]\n"" = "a"', r"aliases: a name in files is not empty"),
        ('[aliases]\na = "b"\nb = "c"', r"aliases: a: b is an alias itself"),
        ('[aliases]\na = "a"', r"aliases: a: a is an alias itself"),
        ("= 1", r"is not TOML"),
    ],
)
def test_a_wrong_setting_is_named_with_its_place_and_what_is_allowed(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(config=written(tmp_path, text), environ={})
    if "disk" not in text:
        assert caught.value.message.startswith(str(tmp_path / "batchline.toml"))


def test_a_key_never_appears_in_a_message(tmp_path: Path) -> None:
    file = written(tmp_path, '[[backend]]\nbase_url = "x"\napi_key_env = "sk-secret-1"')
    with pytest.raises(ConfigError, match="name of an environment variable") as caught:
        load(config=file, environ={})
    assert "sk-secret" not in caught.value.message
    file = written(tmp_path, '[[backend]]\nbase_url = "x"\napi_key_env = "K"')
    with pytest.raises(ConfigError, match="cannot be sent") as caught:
        load(config=file, environ={"K": "sk-secret\n2"})
    assert "sk-secret" not in caught.value.message


def test_two_keys_for_one_backend_are_refused(tmp_path: Path) -> None:
    text = (
        '[[backend]]\nbase_url = "x"\napi_key_env = "K"\nheaders = { authorization = "Basic YQ==" }'
    )
    with pytest.raises(ConfigError, match="headers: Authorization is what api_key_env sends"):
        load(config=written(tmp_path, text), environ={"K": "secret"})


@pytest.mark.parametrize(
    ("endpoint", "base_url"),
    [
        ("http://x/v1/chat/completions", "http://x/v1"),
        ("https://x:1/a/v1/models/", "https://x:1/a/v1"),
        ("x:8000/embeddings", "http://x:8000"),
    ],
)
def test_an_endpoint_is_no_base_url_and_the_message_says_what_is(
    endpoint: str, base_url: str
) -> None:
    with pytest.raises(ValueError, match=f"is an endpoint; the base URL is {base_url}$"):
        base_url_of(endpoint)
    assert base_url_of("http://x/my-models") == "http://x/my-models/v1"


def test_what_a_person_may_well_mean_is_taken(tmp_path: Path) -> None:
    # Bounds are there for slips of the hand, and must not meet what somebody wants.
    text = """
workers = 256
windows = ["11574d"]
[retention]
output_s = 1000000000
[limits]
max_batch_file_bytes = 1000000000000000
[[backend]]
name = "größe A"
base_url = "x"
weight = 1000
health_s = 0.1
"""
    assert load(config=written(tmp_path, text), environ={}).backends[0].name == "größe A"


def test_wrong_texts_of_the_environment_and_the_command_line_name_their_place() -> None:
    with pytest.raises(ConfigError, match="BATCHLINE_WORKERS: expected a whole number, got 'two'"):
        load(environ={"BATCHLINE_WORKERS": "two"})
    with pytest.raises(ConfigError, match=r"command line: server\.port: .*from 0 to 65535"):
        load(environ={}, options={"server.port": -1})
    with pytest.raises(ConfigError, match=r"--upstream: base_url: 'ftp://x'"):
        load(environ={}, upstreams=["ftp://x"])
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(environ={}, config=Path("/nonexistent/batchline.toml"))


@pytest.mark.parametrize(
    ("given", "base_url"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("localhost:11434", "http://localhost:11434/v1"),
        ("https://API.openai.com", "https://api.openai.com/v1"),
        ("https://host/openai", "https://host/openai/v1"),
        ("https://host/v1beta/openai/", "https://host/v1beta/openai"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_an_upstream_is_understood_with_or_without_v1(given: str, base_url: str) -> None:
    assert base_url_of(given) == base_url
    assert base_url_of(base_url) == base_url


@pytest.mark.parametrize(
    "given", ["", "http://", "http://a b", "http://x:99999", "x:0", "http://x?a=b"]
)
def test_what_is_no_base_url_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=r"URL|x:\d+: a port is a number from 1"):
        base_url_of(given)


@pytest.mark.parametrize(
    ("window", "seconds"), [("24h", 86400), ("3s", 3), ("90m", 5400), ("7d", 604800)]
)
def test_a_window_is_a_number_and_a_unit(window: str, seconds: int) -> None:
    assert window_s(window) == seconds


@pytest.mark.parametrize("window", ["", "h", "0h", "1w", "1.5h", "-1h", "24 h", "24H", "٣s"])
def test_what_is_no_window_is_refused(window: str) -> None:
    with pytest.raises(ValueError, match="followed by"):
        window_s(window)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("LocalHost", True),
        (EVERYWHERE, False),
        ("::", False),
        ("192.168.1.2", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_only_loopback_is_served_without_keys(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    server = ServerSettings(host=host)
    if loopback:
        check_reach(server, has_keys=False)
    else:
        with pytest.raises(ConfigError, match=r"server\.host: .*would let others in.*keys create"):
            check_reach(server, has_keys=False)


def test_any_address_is_served_with_keys_or_by_an_explicit_word() -> None:
    check_reach(ServerSettings(host=EVERYWHERE), has_keys=True)
    check_reach(ServerSettings(host=EVERYWHERE, insecure_no_auth=True), has_keys=False)


def test_the_data_directory_is_looked_for_where_the_server_looks(tmp_path: Path) -> None:
    file = written(tmp_path, '[server]\ndata_dir = "/from/file"')
    in_file = {"BATCHLINE_CONFIG": str(file)}
    in_env = in_file | {"BATCHLINE_SERVER_DATA_DIR": "/from/env"}
    assert data_directory(Path("/given"), environ=in_env) == Path("/given")
    assert data_directory(None, environ=in_env) == Path("/from/env")
    assert data_directory(None, environ=in_file) == Path("/from/file")
    assert data_directory(None, environ={}) == Settings().server.data_dir
    for environ in (in_env, in_file, {}):
        assert data_directory(None, environ=environ) == load(environ=environ).server.data_dir


MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:25 / /mnt/team rw,relatime shared:2 - nfs4 nas:/team rw,vers=4.2
31 30 8:2 / /mnt/team/local rw,relatime - xfs /dev/sdb1 rw
32 22 0:26 / /mnt/with\040space rw - fuse.sshfs me@host: rw
33 22 0:27 / /srv rw - cifs //nas/srv rw
34 22 8:3 / /srv rw - ext4 /dev/sdc1 rw
35 22 0:28 / /home rw shared:3 master:1 - nfs nas:/home rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/batchline", None),
        ("/mnt/team", "nfs4"),
        ("/mnt/team/data", "nfs4"),
        ("/mnt/team/local/data", None),
        ("/mnt/teammate", None),
        ("/mnt/with space/data", "fuse.sshfs"),
        ("/srv/data", None),  # mounted over
        ("/home/me/data", "nfs"),
    ],
)
def test_a_network_file_system_is_told_from_a_local_one(path: str, kind: str | None) -> None:
    assert network_file_system(MOUNTS, Path(path)) == kind


def test_the_start_up_block_says_where_and_with_what() -> None:
    settings = load(environ={}, options={"server.data_dir": Path("/data"), "workers": 2})
    reports = [
        BackendReport(
            name="a",
            base_url="http://a/v1",
            reach=Reach.REACHABLE,
            models=["m1", "m2", "m3", "m4", "m5", "m6"],
        ),
        BackendReport(name="b", base_url="http://b/v1", reach=Reach.UNREACHABLE, trouble="refused"),
        BackendReport(name="c", base_url="http://c/v1"),
        BackendReport(
            name="d", base_url="http://d/v1", reach=Reach.REACHABLE, trouble="refuses the key"
        ),
    ]
    lines = start_up(settings, reports, port=1234, has_keys=False).splitlines()
    assert lines[1] == "listening on http://127.0.0.1:1234"
    text = "\n".join(lines)
    for part in (
        "/data",
        "workers      2",
        "a at http://a/v1: answers\n",
        "m1, m2, m3, m4 and 2 more",
        "b at http://b/v1: UNREACHABLE (refused); its lines wait",
        "c at http://c/v1: has not answered yet",
        "d at http://d/v1: answers, but refuses the key",
        'base_url="http://127.0.0.1:1234/v1"',
    ):
        assert part in text
    assert "--upstream" in start_up(settings, [], port=1, has_keys=False)
    six = load(environ={}, options={"server.host": "::1"})
    assert "listening on http://[::1]:5\n" in start_up(six, [], port=5, has_keys=False)


@pytest.mark.parametrize(
    ("host", "has_keys", "says", "api_key"),
    [
        ("127.0.0.1", False, "keys         none: this machine only", 'api_key="none"'),
        (EVERYWHERE, False, "keys         NONE, AND OTHERS CAN REACH IT", 'api_key="none"'),
        (EVERYWHERE, True, "keys         every request needs one", 'api_key="sk-bl-'),
    ],
)
def test_the_start_up_block_says_who_is_let_in(
    host: str, has_keys: bool, says: str, api_key: str
) -> None:
    settings = load(environ={}, options={"server.host": host})
    backend = BackendReport(name="a", base_url="http://a/v1", reach=Reach.REACHABLE)
    block = start_up(settings, [backend], port=1, has_keys=has_keys)
    assert says in block
    assert api_key in block


def test_the_reference_lists_every_setting_with_its_default() -> None:
    """If this fails, put the setting into docs/reference/settings.md; it is what people read."""
    rows = dict(re.findall(r"^\| `([A-Za-z_.\[\]]+)` \| `([^`]*)` \|", REFERENCE.read_text(), re.M))
    expected = {key: spelled(default_of(key)) for key, _ in scalars()}
    defaults = BackendSettings(name="", base_url="")
    optional = (
        *("max_in_flight", "connect_timeout_s", "total_timeout_s", "max_answer_bytes"),
        *("transport", "cancel", "stops_on_close", "stream", "keep_partial", "rate_headers"),
        *("weight", "health_s"),
        *("concurrency", "min_in_flight", "interactive_slowdown"),
    )
    for key in optional:
        expected[f"[[backend]].{key}"] = spelled(getattr(defaults, key))
    expected |= {
        f"[[backend]].{key}": ""
        for key in (
            *("name", "base_url", "api_key_env", "models", "headers", "abort_call", "priority"),
            *("requests_per_minute", "tokens_per_minute", "first_byte_timeout_s"),
        )
    }
    expected["[aliases]"] = ""
    expected["[projects.NAME].weight"] = "1"
    expected["[projects.NAME].identical_requests"] = '"run_each"'
    assert {key: value.strip() for key, value in rows.items()} == expected


def test_every_example_of_the_reference_can_be_read(tmp_path: Path) -> None:
    examples = re.findall(r"^```toml\n(.*?)^```", REFERENCE.read_text(), re.M | re.S)
    assert examples
    for example in examples:
        load(config=written(tmp_path, example), environ={"HOSTED_API_KEY": "sk-1"})


def spelled(value: object) -> str:
    """A default as TOML has it."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return f"{value:g}" if isinstance(value, float) else str(value)
        case dict():
            return "[" + ", ".join(f'"{name}"' for name in value) + "]"
        case _:
            return f'"{value}"'
