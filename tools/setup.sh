#!/bin/sh
# setup.sh: bring a bare Debian machine to where lbd builds, demonstrates itself and is tested.
#
#   tools/setup.sh build      what the build and the daemon need
#   tools/setup.sh demo       and the programs that the demo drives
#   tools/setup.sh test       and everything the test suite uses
#
# Debian packages that are missing are installed (as root), then the virtual environment .venv is
# filled. Both steps look first and do nothing when there is nothing to do, so a second run is quick.
# Environment: PYTHON (default python3), the interpreter that the virtual environment is made of.
set -eu
level=${1:-test}
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

die() { echo "setup: $*" >&2; exit 1; }

# --- one at a time, also between two users of one checkout -------------------------------------
mkdir -p build
exec 9>build/.setup.lock
flock 9

# --- Debian packages ---------------------------------------------------------------------------
# build: clang compiles the BPF program; llvm has its disassembler; -dev packages are linked against.
packages="gcc libc6-dev clang llvm libbpf-dev libxdp-dev libelf-dev zlib1g-dev linux-libc-dev pkg-config
    binutils iproute2 ethtool procps kmod ca-certificates"

# The headers and the venv module of the interpreter in use: only Debian's own comes without them.
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$PYTHON is older than 3.11: name a newer one, as in: make PYTHON=/usr/local/bin/python3.12"
"$PYTHON" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || packages="$packages python3-dev"
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || packages="$packages python3-venv"

# demo: real servers (nginx, dnsmasq) and clients.
demo="nginx dnsmasq-base dnsperf wrk iperf3 curl"

# test: neighbours on the same port (frr, keepalived, sshd), judges (tshark, promtool, nftables,
# ipvsadm), proof tools (relacy, sanitizers, valgrind), and what the lab VM is unpacked with.
test="g++ nftables tcpdump tshark frr keepalived openssh-server openssh-client ipvsadm bpftool prometheus tayga
    relacy-dev libclang-rt-14-dev valgrind iputils-ping conntrack util-linux systemd
    zstd xz-utils busybox-static"

case $level in
build) ;;
demo) packages="$packages $demo" ;;
test) packages="$packages $demo $test" ;;
*) die "unknown level '$level' (build, demo or test)" ;;
esac

missing=
for p in $packages; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing="$missing $p"
done

# NB: packages such as frr or prometheus start their daemon when installed, and a stray nginx or
# dnsmasq on this machine would answer for the tests' own. invoke-rc.d and deb-systemd-invoke both
# ask policy-rc.d first: 101 means no. A policy that is there already (containers have one that
# says the same) is put back afterwards, also when apt fails or is interrupted.
policy=/usr/sbin/policy-rc.d
forbid_starts() {
    # unless it is ours, of a run that was killed
    [ ! -e $policy ] || grep -q 'lbd: setup' $policy || mv $policy $policy.before-lbd
    trap allow_starts EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\n# lbd: setup\nexit 101\n' >$policy
    chmod 755 $policy
}
allow_starts() {
    rm -f $policy
    [ ! -e $policy.before-lbd ] || mv $policy.before-lbd $policy
    trap - EXIT HUP INT TERM
}

if [ -n "$missing" ]; then
    [ "$(id -u)" = 0 ] || die "these packages are missing, and only root can install them:$missing"
    command -v apt-get >/dev/null || die "no apt-get here; install what corresponds to:$missing"
    echo "setup: installing Debian packages:$missing"
    export DEBIAN_FRONTEND=noninteractive
    installed() { dpkg-query -W -f '${Package} ${db:Status-Status}\n' | sed -n 's/ installed$//p' | sort; }
    installed >build/apt.before
    forbid_starts
    # shellcheck disable=SC2086  # a list of words
    { apt-get -q update && apt-get -qy -o Dpkg::Use-Pty=0 install --no-install-recommends $missing; } \
        >build/apt.log 2>&1 9>&- || { tail -n 30 build/apt.log >&2; die "apt-get failed (whole log: build/apt.log)"; }
    allow_starts
    # Nor are they to start at the next boot.
    units=$(installed | comm -13 build/apt.before - | xargs -r dpkg -L |
        sed -nE 's#^(/usr)?/lib/systemd/system/([^@/]+\.service)$#\2#p')
    # shellcheck disable=SC2086  # a list of words
    [ -z "$units" ] || systemctl --no-reload disable $units >>build/apt.log 2>&1 || true
    mkdir -p .cache
    printf '%s\n' $missing >>.cache/debian-packages # for make uninstall
fi

# --- Python virtual environment ----------------------------------------------------------------
# The requirements are those of pyproject.toml; the stamp keeps what was installed last.
[ "$level" = test ] && extra=test || extra=
requirements=$("$PYTHON" - "$extra" <<'PY'
import sys, tomllib
d = tomllib.load(open("pyproject.toml", "rb"))
p = d["project"]
print(*d["build-system"]["requires"], *p["dependencies"],
      *(p["optional-dependencies"][sys.argv[1]] if sys.argv[1] else ()), sep="\n")
PY
)
key=$("$PYTHON" -c 'import sys; print(sys.version.split()[0], sys.base_prefix)'; pwd; echo "$requirements")
stamp=.venv/.installed${extra:+-$extra}
if [ "$(cat $stamp 2>/dev/null)" != "$key" ]; then
    # another interpreter, or moved: start afresh (its scripts hold absolute paths)
    first=$(printf '%s\n' "$key" | head -n 2)
    [ "$(cat .venv/.made-of 2>/dev/null)" = "$first" ] || rm -rf .venv
    [ -x .venv/bin/pip ] || { echo "setup: making .venv with $("$PYTHON" --version)"; "$PYTHON" -m venv .venv 9>&-; }
    printf '%s\n' "$first" >.venv/.made-of
    echo "setup: installing Python packages:" $requirements
    # one requirement a line: some hold commas and comparison signs, none holds spaces
    # shellcheck disable=SC2086
    .venv/bin/pip install -q --disable-pip-version-check $requirements 9>&- || die "pip failed"
    # The checkout itself, editable: a path entry and the command. (pip install -e would run the
    # whole build a second time, and again after every change of a .pyx.)
    pwd >"$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/lbd.pth"
    printf '#!%s/.venv/bin/python\nimport sys\n\nfrom lbd.cli.main import main\n\nsys.exit(main())\n' "$PWD" >.venv/bin/lbd
    chmod 755 .venv/bin/lbd
    printf '%s\n' "$key" >$stamp
fi
