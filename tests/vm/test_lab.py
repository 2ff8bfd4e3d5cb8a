"""The lab itself: it boots, and its NICs do AF_XDP zero-copy, on which other tests here rely."""

import re

import pytest


def test_exit_status_and_streams_come_back(vmlab):
    done = vmlab("uname -s; echo oops >&2; exit 7")
    assert (done.stdout.strip(), done.stderr.strip(), done.returncode) == ("Linux", "oops", 7)


@pytest.mark.slow
def test_zero_copy_receive(stage, lab_tool):
    # virtio-net alone: igb drops its link for seconds when a program is attached; test_fullnat.py waits for it
    script = f"""
        ip link set eth0 up; ip link set eth1 up
        {lab_tool("xsklab")} rx eth0 -z -t 12 & receiver=$!
        while kill -0 $receiver; do
            {lab_tool("txgen")} eth1 100 16 ff:ff:ff:ff:ff:ff 10.1.0.1; sleep 0.5
        done"""
    done = stage.play(["virtio"] * 2, ["sh", "-c", script], 200)
    assert "ZEROCOPY" in done.stdout, done.stdout + done.stderr
    received = re.search(r"rx: (\d+) packets", done.stdout)
    assert received and int(received[1]) >= 100, done.stdout + done.stderr
