"""What is said about a wrong configuration: a table of broken files with line, field, remedy."""

from __future__ import annotations

import pytest

from lbd.config import ConfigError, loads

GOOD = """\
[[interface]]
name = "eth0"
[[local_address]]
address = "10.0.0.10"
interface = "eth0"
[[service]]
name = "web"
address = "192.0.2.10:80"
interface = "eth0"
[[service.real_server]]
address = "10.0.1.1:8080"
"""
AFTER = GOOD.count("\n") + 1  # first line of what a test appends: the table of that real server is open


def refused(text: str) -> list[tuple[int | None, str, str]]:
    with pytest.raises(ConfigError) as caught:
        loads(text, "x.toml")
    assert all(str(p).startswith("x.toml") for p in caught.value.problems)
    return [(p.line, p.field, p.message) for p in caught.value.problems]


def warned(text: str) -> list[tuple[int | None, str, str]]:
    return [(w.line, w.field, w.message) for w in loads(text).warnings]


SECOND = '[[service]]\nname = "second"\naddress = "192.0.2.11:80"\ninterface = "eth0"\n'
QUIC = SECOND + 'protocol = "udp"\nquic = "quic-lb"\n'
ONE = '[[service.real_server]]\naddress = "10.1.0.1:80"\n'
TWO = ONE.replace("10.1.0.1", "10.1.0.2")
# What is appended to GOOD: the line after that (0: the first appended), the field, words of the message.
BROKEN = {
    "unknown table": ("[demon]", 0, "demon", "did you mean `[daemon]`?"),
    "unknown array": ("[[services]]", 0, "services", "did you mean `[[service]]`?"),
    "unknown key": ('[workers]\npol = "busy"', 1, "workers.pol", "did you mean `poll`?"),
    "unknown key, nothing like it": (
        "[workers]\nxyzzy = 1",
        1,
        "workers.xyzzy",
        "[workers] has count, cores,",
    ),
    "key in the wrong table": (
        'scheduler = "rr"',
        0,
        "service[0].real_server[0].scheduler",
        "it belongs into [[service]]",
    ),
    "key that needs quotes": ('[workers]\n"a\\nb" = 1', 1, "workers.'a\\nb'", "unknown key"),
    "text for a number": (
        'weight = "3"',
        0,
        "service[0].real_server[0].weight",
        "write it without quotes: `weight = 3`",
    ),
    "below the range": (
        "weight = -3",
        0,
        "service[0].real_server[0].weight",
        "must be between 0 and 65535, not -3; for example `weight = 1`",
    ),
    "huge": ("weight = 0x" + "f" * 9000, 0, "service[0].real_server[0].weight", "not a number of 36000 bits"),
    "a float": (
        "weight = 1.0",
        0,
        "service[0].real_server[0].weight",
        "whole number between 0 and 65535, not 1.0",
    ),
    "truth as a number": ("weight = true", 0, "service[0].real_server[0].weight", "whole number"),
    "a date": ("weight = 2026-11-21", 0, "service[0].real_server[0].weight", "not the date 2026-11-21"),
    "number as truth": (
        "[packet]\nverify_checksums = 1",
        1,
        "packet.verify_checksums",
        "true or false, not 1",
    ),
    "text as truth": ('[packet]\nverify_checksums = "yes"', 1, "packet.verify_checksums", "without quotes"),
    "choice": ('[daemon]\nlog_level = "warn"', 1, "daemon.log_level", 'did you mean "warning"?'),
    "choice, capitals": ('[daemon]\nlog_level = "INFO"', 1, "daemon.log_level", 'did you mean "info"?'),
    "choice, no text": ("[daemon]\nlog_level = 3", 1, "daemon.log_level", 'one of "debug", "info"'),
    "power of two": ("[tables]\nframes = 3000", 1, "tables.frames", "the nearest are 2048 and 4096"),
    "power of two, range": ("[tables]\nframes = 128", 1, "tables.frames", "between 256 and 1048576"),
    "duration, unit": ('[timeouts]\nudp = "15"', 1, "timeouts.udp", 'add the unit: "15s" is 15 seconds'),
    "duration, space": ('[timeouts]\nudp = "15 min"', 1, "timeouts.udp", 'write "15m"'),
    "duration, long unit": ('[timeouts]\nudp = "2 hours"', 1, "timeouts.udp", 'write "2h"'),
    "duration, words": ('[timeouts]\nudp = "soon"', 1, "timeouts.udp", "one unit: ms, s, m, h or d"),
    "duration, range": ('[timeouts]\nudp = "0s"', 1, "timeouts.udp", 'between 100ms and 7d, not "0s"'),
    "duration, number": ("[timeouts]\nudp = -1", 1, "timeouts.udp", "not -1 (seconds)"),
    "duration, infinite": ("[timeouts]\nudp = inf", 1, "timeouts.udp", "must be a duration"),
    "duration, nan": ("[timeouts]\nudp = nan", 1, "timeouts.udp", "must be a duration"),
    "duration, huge": ("[timeouts]\nudp = " + "9" * 400, 1, "timeouts.udp", "must be a duration"),
    "duration, huge unit": (f'[timeouts]\nudp = "{"9" * 15}d"', 1, "timeouts.udp", "between 100ms and 7d"),
    "table as a value": ("workers = 3", 0, "service[0].real_server[0].workers", "unknown key"),
    "two brackets": ("[[daemon]]", 0, "daemon", "must be one table, not an array; write [daemon] once"),
    "port missing": ('[metrics]\nlisten = "127.0.0.1"', 1, "metrics.listen", 'add the port: "127.0.0.1:80"'),
    "port 0": ('[metrics]\nlisten = "127.0.0.1:0"', 1, "metrics.listen", "from 1 to 65535"),
    "other digits": ('[metrics]\nlisten = "127.0.0.1:٨٠"', 1, "metrics.listen", "from 1 to 65535"),
    "no brackets": ('[metrics]\nlisten = "::1:80"', 1, "metrics.listen", 'written in brackets: "[::1]:80"'),
    "brackets, no port": ('[metrics]\nlisten = "[::1]"', 1, "metrics.listen", '"[::1]:80"'),
    "IPv4 in brackets": ('[metrics]\nlisten = "[127.0.0.1]:80"', 1, "metrics.listen", 'write "127.0.0.1:80"'),
    "a name": ('[metrics]\nlisten = "localhost:80"', 1, "metrics.listen", "names are not looked up"),
    "zone": ('[metrics]\nlisten = "[fe80::1%eth0]:80"', 1, "metrics.listen", "leave out the zone"),
    "mapped": ('[metrics]\nlisten = "[::ffff:1.2.3.4]:80"', 1, "metrics.listen", '"1.2.3.4"'),
    "leading zeros": ('[metrics]\nlisten = "127.0.0.01:80"', 1, "metrics.listen", 'write "127.0.0.1"'),
    "five numbers": ('[metrics]\nlisten = "1.2.3.4.5:80"', 1, "metrics.listen", "four numbers from 0 to 255"),
    "run_dir": ('[daemon]\nrun_dir = "run/lbd"', 1, "daemon.run_dir", "absolute path"),
    "run_dir, long": (f'[daemon]\nrun_dir = "/{"x" * 90}"', 1, "daemon.run_dir", "80 bytes at most"),
    "run_dir, up": ('[daemon]\nrun_dir = "/run/../lbd"', 1, "daemon.run_dir", 'where the ".." leads'),
    "group": ('[daemon]\ngroup = "a b"', 1, "daemon.group", "must be a name"),
    "cores, element": ("[workers]\ncores = [\n  1,\n  -1,\n]", 3, "workers.cores[1]", "between 0 and 8191"),
    "cores, no array": ("[workers]\ncores = 3", 1, "workers.cores", "in brackets: `cores = [2, 3]`"),
    "cores, many": (f"[workers]\ncores = {[*range(17)]}", 1, "workers.cores", "an array of 0 to 16 elements"),
    "cores, twice": (
        "[workers]\ncores = [\n  1,\n  2,\n  1]",
        4,
        "workers.cores[2]",
        "same core as cores[0]",
    ),
    "cores, few": ("[workers]\ncount = 3\ncores = [1]", 1, "workers.count", "at most 1"),
    "interface missing a name": ("[[interface]]\nring = 64", 0, "interface[1].name", 'add `name = "eth0"`'),
    "interface, no text": ("[[interface]]\nname = 3", 1, "interface[1].name", "write it in quotes"),
    "interface, long": ('[[interface]]\nname = "0123456789abcdef"', 1, "interface[1].name", "1 to 15 bytes"),
    "interface, slash": ('[[interface]]\nname = "a/b"', 1, "interface[1].name", "no space, slash or colon"),
    "interface, twice": ('[[interface]]\nname = "eth0"', 1, "interface[1].name", "interface[0] is the same"),
    "interfaces, many": (
        "".join(f'[[interface]]\nname = "e{i}"\n' for i in range(16)),
        -AFTER + 1,
        "interface",
        "at most 16, not 17",
    ),
    "LIP, twice": (
        '[[local_address]]\naddress = "10.0.0.10"\ninterface = "lo"',
        1,
        "local_address[1].address",
        "local_address[0] is the same",
    ),
    "LIP is a VIP": (
        '[[local_address]]\naddress = "192.0.2.10"\ninterface = "lo"',
        1,
        "local_address[1].address",
        'that of service "web"',
    ),
    "LIP, no interface": (
        '[[local_address]]\naddress = "10.0.0.11"',
        0,
        "local_address[1]",
        "manage = false",
    ),
    "LIP with a port": (
        '[[local_address]]\naddress = "10.0.0.11:80"',
        1,
        "local_address[1].address",
        "leave out the port",
    ),
    "LIP with a length": (
        '[[local_address]]\naddress = "10.0.0.11/24"',
        1,
        "local_address[1].address",
        "prefix length",
    ),
    "LIP, multicast": (
        '[[local_address]]\naddress = "224.0.0.1"',
        1,
        "local_address[1].address",
        "multicast",
    ),
    "LIP, any": ('[[local_address]]\naddress = "::"', 1, "local_address[1].address", "unspecified"),
    "LIP, loopback": ('[[local_address]]\naddress = "127.0.0.1"', 1, "local_address[1].address", "loopback"),
    "LIP, broadcast": (
        '[[local_address]]\naddress = "255.255.255.255"',
        1,
        "local_address[1].address",
        "broadcast",
    ),
    "LIP, link-local": (
        '[[local_address]]\naddress = "fe80::1"',
        1,
        "local_address[1].address",
        "link-local",
    ),
    "ports, order": (
        '[[local_address]]\nports = "3000-2000"',
        1,
        "local_address[1].ports",
        'write "2000-3000"',
    ),
    "ports, low": (
        '[[local_address]]\nports = "80-90000"',
        1,
        "local_address[1].ports",
        'write "1024-65535"',
    ),
    "ports, number": ("[[local_address]]\nports = 2000", 1, "local_address[1].ports", "FIRST-LAST in quotes"),
    "service, twice": (
        '[[service]]\nname = "web"\naddress = "192.0.2.11:80"',
        1,
        "service[1].name",
        "service[0] has this name",
    ),
    "service, same address": (
        '[[service]]\nname = "b"\naddress = "192.0.2.10:80"\ninterface = "eth0"',
        2,
        "service[1].address",
        "service[0] has this address, port and protocol",
    ),
    "service, one VIP on two interfaces": (
        '[[service]]\nname = "b"\naddress = "192.0.2.10:81"',
        0,
        "service[1].interface",
        "as in service[0]",
    ),
    "service, one VIP managed and not": (
        '[[service]]\nname = "b"\naddress = "192.0.2.10:81"\ninterface = "eth0"\nmanage = false',
        4,
        "service[1].manage",
        "as in service[0]",
    ),
    "service, name": ('[[service]]\nname = "näme"', 1, "service[1].name", 'not "näme"; up to 63 of'),
    "service, control characters": (
        '[[service]]\nname = "a\\nb\\u0000"',
        1,
        "service[1].name",
        'not "a\\nb\\x00"',
    ),
    "service, scheduler": (
        '[[service]]\nscheduler = "wcl"',
        1,
        "service[1].scheduler",
        'did you mean "wlc"?',
    ),
    "service, scheduler unlike": (
        '[[service]]\nscheduler = "best"',
        1,
        "service[1].scheduler",
        '"lblcr", not "best"',
    ),
    "service, scheduler_flags": (
        '[[service]]\nscheduler_flags = ["mh-prot"]',
        1,
        "service[1].scheduler_flags[0]",
        'did you mean "mh-port"?',
    ),
    "service, scheduler_flags of another": (
        SECOND + 'scheduler = "sh"\nscheduler_flags = ["sh-port", "mh-port"]',
        5,
        "service[1].scheduler_flags[1]",
        '"mh-port" is no flag of "sh", which has "sh-fallback" and "sh-port"; remove it',
    ),
    "service, scheduler_flags without any": (
        SECOND + 'scheduler_flags = ["mh-port"]',
        4,
        "service[1].scheduler_flags[0]",
        '"mh-port" is no flag of "wlc", which has none; remove it',
    ),
    "service, scheduler_flags twice": (
        SECOND + 'scheduler = "mh"\nscheduler_flags = ["mh-port", "mh-port"]',
        5,
        "service[1].scheduler_flags[1]",
        '"mh-port" stands there already; remove one',
    ),
    "service, hash_target of tcp": (
        SECOND + 'scheduler = "conhash"\nhash_target = "qid"',
        5,
        "service[1].hash_target",
        'qid needs protocol = "udp"; write hash_target = "sip"',
    ),
    "service, hash_target, scheduler": (
        SECOND + 'protocol = "udp"\nhash_target = "qid"',
        5,
        "service[1].hash_target",
        'goes with scheduler = "conhash", not with "wlc"; remove it',
    ),
    "service, quic": (SECOND + 'quic = "quic-bl"', 4, "service[1].quic", 'did you mean "quic-lb"?'),
    "service, quic of tcp": (SECOND + 'quic = "dpvs"', 4, "service[1].quic", 'needs protocol = "udp", not "tcp"'),
    "service, quic_config": (
        SECOND + 'protocol = "udp"\nquic = "dpvs"\nquic_config = 1',
        6,
        "service[1].quic_config",
        'goes with quic = "quic-lb" alone; remove it',
    ),
    "service, quic_id_length": (
        SECOND + 'protocol = "udp"\nquic_id_length = 3',
        5,
        "service[1].quic_id_length",
        'goes with quic = "dpvs" alone; remove it',
    ),
    "real server, quic_id missing": (
        QUIC + ONE,
        6,
        "service[1].real_server[0]",
        'needs quic_id, by which quic = "quic-lb" knows it; write quic_id = "2a" or the like',
    ),
    "real server, quic_id no digits": (QUIC + ONE + "quic_id = 12", 8, "service[1].real_server[0].quic_id", "in quotes"),
    "real server, quic_id odd": (QUIC + ONE + 'quic_id = "abc"', 8, "service[1].real_server[0].quic_id", "two for each byte"),
    "real server, quic_id of another length": (
        QUIC + ONE + 'quic_id = "ab"\n' + TWO + 'quic_id = "abcd"',
        11,
        "service[1].real_server[1].quic_id",
        "has 4 digits, another one 2: all ids of a service are of one length",
    ),
    "real server, quic_id twice": (
        QUIC + ONE + 'quic_id = "ab"\n' + TWO + 'quic_id = "AB"',
        11,
        "service[1].real_server[1].quic_id",
        "real_server[0] has this id already; choose another",
    ),
    "real server, quic_id too long": (
        QUIC.replace("quic-lb", "katran") + ONE + 'quic_id = "0102030405"',
        8,
        "service[1].real_server[0].quic_id",
        "has 10 digits; katran has 8 at most",
    ),
    "real server, quic_id with dpvs": (
        QUIC.replace("quic-lb", "dpvs") + ONE + 'quic_id = "01"',
        8,
        "service[1].real_server[0].quic_id",
        "has no effect: dpvs takes it from the address; remove it",
    ),
    "real server, quic_id without quic": (
        SECOND + ONE + 'quic_id = "01"',
        6,
        "service[1].real_server[0].quic_id",
        "has no effect: the service has no `quic`; remove it",
    ),
    "real server, dpvs, ends alike": (
        QUIC.replace("quic-lb", "dpvs") + ONE + TWO.replace("10.1.0.2", "10.9.0.1"),
        9,
        "service[1].real_server[1].address",
        "ends as that of real_server[0], so that connection ids can't tell them apart; raise quic_id_length",
    ),
    "service, lblc of many": (
        SECOND + 'scheduler = "lblc"\n' + "".join(f'[[service.real_server]]\naddress = "10.1.0.{n}:80"\n' for n in range(65)),
        4,
        "service[1].scheduler",
        "lblc takes at most 64 real servers, not 65; split the service, or use wlc",
    ),
    "service, protocol": ('[[service]]\nprotocol = "tpc"', 1, "service[1].protocol", 'did you mean "tcp"?'),
    "tunnel, other mode": ('tunnel = { type = "gre" }', 0, "service[0].real_server[0].tunnel", 'no effect in mode fullnat'),
    "tunnel, type": (
        '[[service]]\nmode = "tunnel"\n[service.tunnel]\ntype = "grep"', 3, "service[1].tunnel.type", 'did you mean "gre"?'
    ),
    "tunnel, remcsum": (
        '[[service]]\nmode = "tunnel"\n[service.tunnel]\ntype = "gue"\nchecksum = "remcsum"', 4, "service[1].tunnel.checksum",
        'must be one of "none", "full"',
    ),
    "service, mode": ('[[service]]\nmode = "nta"', 1, "service[1].mode", 'did you mean "nat"'),
    "service, no LIP": (
        '[[service]]\nname = "6"\naddress = "[2001:db8::1]:80"\n'
        '[[service.real_server]]\naddress = "[fd00::1]:80"',
        0,
        "service[1]",
        'add [[local_address]] with address = "fd00::10"',
    ),
    "real server, other family": (
        '[[service.real_server]]\naddress = "[fd00::1]:80"',
        1,
        "service[0].real_server[1].address",
        "must be IPv4 as the service's address",
    ),
    "real server, IPv4 service with one of IPv6": (
        '[[service.real_server]]\naddress = "[fd00::1]:80"',
        1,
        "service[0].real_server[1].address",
        "fullnat translates from an IPv6 service to IPv4 real servers, not the other way round",
    ),
    "real server, other family, nat": (
        '[[service]]\nname = "6"\naddress = "[2001:db8::1]:80"\nmode = "nat"\n'
        '[[service.real_server]]\naddress = "10.0.1.9:80"',
        5,
        "service[1].real_server[0].address",
        "must be IPv6 as the service's address, not IPv4; nat does not translate between them",
    ),
    "real server, twice": (
        '[[service.real_server]]\naddress = "10.0.1.1:8080"',
        1,
        "service[0].real_server[1].address",
        "real_server[0] is the same",
    ),
    "real server is a VIP": (
        '[[service.real_server]]\naddress = "192.0.2.10:81"',
        1,
        "service[0].real_server[1].address",
        "must not be a VIP",
    ),
    "real server is a LIP": (
        '[[service.real_server]]\naddress = "10.0.0.10:81"',
        1,
        "service[0].real_server[1].address",
        "must not be a local address",
    ),
    "real server, missing": (
        "[[service.real_server]]\nweight = 2",
        0,
        "service[0].real_server[1].address",
        'is missing; add `address = "10.0.1.1:8080"`',
    ),
    "health, no type": (
        '[service.health]\ninterval = "1s"',
        0,
        "service[0].health.type",
        'add `type = "tcp"`',
    ),
    "health, type": ('[service.health]\ntype = "htp"', 1, "service[0].health.type", 'did you mean "http"?'),
    "health, type no text": (
        "[service.health]\ntype = [1]",
        1,
        "service[0].health.type",
        'one of "tcp", "http"',
    ),
    "health, other kind's key": (
        '[service.health]\ntype = "tcp"\npath = "/"',
        2,
        "service[0].health.path",
        'goes with type = "http", not with "tcp"',
    ),
    "health, unknown key": (
        '[service.health]\ntype = "http"\npaht = "/"',
        2,
        "service[0].health.paht",
        "did you mean `path`?",
    ),
    "health, path": (
        '[service.health]\ntype = "http"\npath = "a b"',
        2,
        "service[0].health.path",
        "begin with a slash",
    ),
    "health, status": (
        '[service.health]\ntype = "http"\nstatus = [200, 99]',
        2,
        "service[0].health.status[1]",
        "between 100 and 599, not 99",
    ),
    "health, no status": (
        '[service.health]\ntype = "http"\nstatus = []',
        2,
        "service[0].health.status",
        "an array of 1 to 100 elements",
    ),
    "health, slow": (
        '[service.health]\ntype = "tcp"\ntimeout = "3s"',
        2,
        "service[0].health.timeout",
        "timeout 3s must not be longer than interval 2s",
    ),
    "health, fast": (
        '[service.health]\ntype = "tcp"\ninterval = "500ms"',
        2,
        "service[0].health.interval",
        "timeout 1s must not be longer than interval 500ms",
    ),
    "health, no table": (
        "[[service]]\nhealth = 3",
        1,
        "service[1].health",
        "write a header [service.health]",
    ),
    "health, two brackets": (
        '[[service.health]]\ntype = "tcp"',
        0,
        "service[0].health",
        "write [service.health] once",
    ),
    "neighbor, interface": (
        '[[neighbor]]\naddress = "10.0.0.1"\nmac = "02:00:00:00:00:01"\ninterface = "eth9"',
        3,
        "neighbor[0].interface",
        'interface of lbd (eth0), not "eth9"',
    ),
    "neighbor, mac": (
        '[[neighbor]]\nmac = "02:00:00:00:00"',
        1,
        "neighbor[0].mac",
        "six pairs of hex digits",
    ),
    "neighbor, group mac": (
        '[[neighbor]]\nmac = "01:00:5e:00:00:01"',
        1,
        "neighbor[0].mac",
        "group addresses",
    ),
    "neighbor, twice": (
        '[[neighbor]]\naddress = "10.0.0.1"\nmac = "02:00:00:00:00:01"\ninterface = "eth0"\n' * 2,
        5,
        "neighbor[1].address",
        "neighbor[0] is the same",
    ),
    "route, interface": (
        '[[route]]\ndestination = "0.0.0.0/0"\ninterface = "eth9"',
        2,
        "route[0].interface",
        'not "eth9"',
    ),
    "route, host bits": (
        '[[route]]\ndestination = "10.0.1.1/24"',
        1,
        "route[0].destination",
        'write "10.0.1.0/24"',
    ),
    "route, no length": ('[[route]]\ndestination = "10.0.1.0"', 1, "route[0].destination", '"10.0.1.0/32"'),
    "route, family": (
        '[[route]]\ndestination = "10.0.1.0/24"\ninterface = "eth0"\ngateway = "fe80::1"',
        3,
        "route[0].gateway",
        "must be IPv4",
    ),
    "route, twice": (
        '[[route]]\ndestination = "0.0.0.0/0"\ninterface = "eth0"\n' * 2,
        4,
        "route[1].destination",
        "same destination",
    ),
    "tables, services": (
        "[tables]\nservices = 1\n[[service]]\nname='b'\naddress='192.0.2.9:1'",
        1,
        "tables.services",
        "at least 2",
    ),
    "tables, real servers": (
        '[[service.real_server]]\naddress = "10.0.1.2:80"\n[tables]\nreal_servers = 1',
        3,
        "tables.real_servers",
        "at least 2, as many as the file has, not 1; write real_servers = 4",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_said(case: str) -> None:
    added, line, field, words = BROKEN[case]
    found = refused(GOOD + added + "\n")
    assert any(at == AFTER + line and f == field and words in message for at, f, message in found), found


FAR = GOOD.replace("[[service.real", 'mode = "tunnel"\n[[service.real').replace("10.0.1.1:8080", "10.0.1.1:80")
TUNNELS = {
    "port without GUE": ("tunnel = { port = 6080 }", "service[0].real_server[0].tunnel.port", "is GUE's, and the type is ipip"),
    "checksum of nothing": ('tunnel = { checksum = "full" }', "service[0].real_server[0].tunnel.checksum", "ipip has none"),
    "port 0": ('tunnel = { type = "gue", port = 0 }', "service[0].real_server[0].tunnel.port", "between 1 and 65535"),
    "source of no family": (
        '[service.tunnel]\nsource = "fd00::1"', "service[0].tunnel.source", "no real server is of IPv6",
    ),
    "source": ('[service.tunnel]\nsource = "eth0"', "service[0].tunnel.source", "IPv4 or IPv6 address"),
    "unknown key": ('tunnel = { tun_port = 1 }', "service[0].real_server[0].tunnel.tun_port", "unknown key"),
    "another port than the service's": (
        '[[service.real_server]]\naddress = "10.0.1.2:81"', "service[0].real_server[1].address", "must have port 80",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TUNNELS)
def test_tunnels(case: str) -> None:
    added, field, words = TUNNELS[case]
    [(_, at, message)] = refused(FAR + added + "\n")
    assert at == field and words in message, message


def test_good_tunnels() -> None:
    for added in ('tunnel = { type = "gue", checksum = "none" }', '[service.tunnel]\ntype = "gre"\nsource = "10.0.0.10"'):
        assert loads(FAR + added + "\n").service[0].mode == "tunnel"


SYNTAX = {
    "no value": ("[daemon]\nlog_level =\n", 2, "write a value after the ="),
    "no quotes": ("[daemon]\nlog_level = info\n", 2, "text stands in quotes"),
    "capital": ("[packet]\nverify_checksums = True\n", 2, "truth values are true and false"),
    "bare duration": ("[timeouts]\nudp = 15m\n", 2, "durations, addresses and other text stand in quotes"),
    "open quotes": ('[daemon]\nlog_level = "info\nrun_dir = "/"\n', 2, ""),
    "twice": ('[daemon]\ngroup = "a"\ngroup = "b"\n', 3, "stands twice"),
    "table twice": ("[daemon]\n[daemon]\n", 2, "stands twice"),
    "open header": ("\n[daemon\n", 2, "close the header with ]"),
    "open array header": ("\n\n[[service]\n", 3, "close the header with ]]"),
    "no equals": ("[daemon]\nrun_dir\n", 2, "followed by ="),
    "open array": ("[workers]\ncores = [1, 2\n\n", 2, "close the array"),
    "open table": ('[[service]]\nhealth = { type = "tcp"\n', 2, "close the table"),
    "no key": ("[daemon]\n= 3\n", 2, "a line is"),
    "backslash": ('[daemon]\nrun_dir = "C:\\lbd"\n', 2, "write \\\\"),
    "control character": ("[daemon]\n# \x00\n", 2, "control character"),
    "two on a line": ('[daemon]\ngroup = "a" run_dir = "/"\n', 2, "one key a line"),
    "long number": ("[workers]\n\ncount = " + "9" * 5000, 3, "number too long"),
    "no date": ("[workers]\ncount = 2026-02-30\n", 2, "nvalid"),
}


@pytest.mark.parametrize("case", SYNTAX)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_syntax(case: str, newline: str) -> None:
    text, line, words = SYNTAX[case]
    [(at, field, message)] = refused(text.replace("\n", newline))
    assert (at, field) == (line, "") and words in message, message


ODD = {
    "no real server": (
        '[[service]]\nname = "b"\naddress = "192.0.2.11:1"',
        0,
        "service[1]",
        "has no real server",
    ),
    "weights": ("weight = 0", 1 - 7, "service[0]", 'all weights of service "web" are 0'),
    "interface of a VIP": (
        '[[service]]\nname="b"\naddress="192.0.2.11:1"\ninterface = "eth7"\n'
        '[[service.real_server]]\naddress="10.0.1.1:1"',
        3,
        "service[1].interface",
        '"eth7" is no interface of lbd (eth0, lo)',
    ),
    "interface of a LIP": (
        '[[local_address]]\naddress="10.0.0.11"\ninterface = "eth7"',
        2,
        "local_address[1].interface",
        '"eth7"',
    ),
    "cores": ("[workers]\ncount = 1\ncores = [1, 2]", 2, "workers.cores", "only the first 1 are used"),
    "timeout of UDP": (
        'weight = 1\n[[service]]\nname="b"\naddress="192.0.2.11:1"\nprotocol="udp"\ntcp_established=3\n'
        '[[service.real_server]]\naddress="10.0.1.1:1"',
        5,
        "service[1].tcp_established",
        "no effect on a UDP service",
    ),
    "ports": (
        '[[local_address]]\naddress="10.0.0.11"\ninterface="lo"\nports = "40000-65535"',
        3,
        "local_address[1].ports",
        "7232 remain to it: end at 32767",
    ),
    "time_wait": ('[timeouts]\ntcp_time_wait = "10s"', 1, "timeouts.tcp_time_wait", "may refuse a port"),
    "frames": ("[tables]\nframes = 2048", 1, "tables.frames", "write frames = 4096"),
}


@pytest.mark.parametrize("case", ODD)
def test_warnings(case: str) -> None:
    added, line, field, words = ODD[case]
    [(at, f, message)] = warned(GOOD + added + "\n")
    assert (at, f) == (AFTER + line, field) and words in message, message
