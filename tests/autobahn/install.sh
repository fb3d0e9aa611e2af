#!/bin/sh
# Install the Autobahn test suite, which runs on Python 2 only, below one directory: nothing system-wide.
#
# usage: install.sh DIRECTORY     makes DIRECTORY/wstest; does nothing if that is there already
#
# Python 2.7 comes from the archive of Debian 11, unpacked beside the system. Needs: apt, dpkg, gcc, python3 with pip.
set -eu

root=${1:?usage: install.sh DIRECTORY}
mkdir -p "$root"
root=$(cd "$root" && pwd)
[ -x "$root/wstest" ] && exit 0

arch=$(dpkg --print-architecture)
triplet=$(gcc -print-multiarch)
[ -n "$triplet" ] || triplet=$(dpkg-architecture -a"$arch" -qDEB_HOST_MULTIARCH)
work=$(mktemp -d "$root/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
chmod 755 "$work"

# An apt of our own: its sources, its lists, its idea of what is installed. The mirror is the system's.
mirror=$(sed -n 's|^URIs: *\([^ ]*/debian\)/*$|\1|p' /etc/apt/sources.list.d/*.sources 2>/dev/null | head -n 1)
[ -n "$mirror" ] || mirror=http://deb.debian.org/debian
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/packages" "$root/python" "$root/site"
: >"$work/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bullseye main" >"$work/sources.list"
cat >"$work/apt.conf" <<EOF
Dir::State "$work/state";
Dir::State::status "$work/status";
Dir::Cache "$work/cache";
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "-";
APT::Sandbox::User "root";
EOF
export APT_CONFIG="$work/apt.conf"
apt-get update -qq
(
    cd "$work/packages"
    apt-get download -qq python2.7 python2.7-minimal python2.7-dev libpython2.7 libpython2.7-minimal \
        libpython2.7-stdlib libpython2.7-dev libssl1.1 libffi7
)
unset APT_CONFIG
for package in "$work"/packages/*.deb; do
    dpkg -x "$package" "$root/python"
done

cat >"$root/python2.7" <<EOF
#!/bin/sh
export LD_LIBRARY_PATH="$root/python/usr/lib/$triplet" PYTHONPATH="$root/site"
exec "$root/python/usr/bin/python2.7" "\$@"
EOF
chmod +x "$root/python2.7"

# The last pip that runs on Python 2, and build tools from before they left it; run from its own wheel.
python3 -m pip download -q --no-deps -d "$work/packages" pip==20.3.4
pip=$(echo "$work"/packages/pip-*.whl)
"$root/python2.7" "$pip/pip" install -q --no-compile --no-deps --target "$root/site" \
    "$pip" setuptools==44.0.0 wheel==0.36.2
# Later releases of these no longer build, or no longer parse, on Python 2.
printf '%s\n' wsaccel==0.6.2 ujson==1.35 incremental==16.10.1 >"$work/constraints.txt"
CFLAGS="-I$root/python/usr/include -I$root/python/usr/include/python2.7" \
    "$root/python2.7" -m pip install -q --no-compile --no-build-isolation --target "$root/site" \
    -c "$work/constraints.txt" autobahntestsuite==25.10.1
# zope is a namespace package, and no .pth file is read in a target directory.
touch "$root/site/zope/__init__.py"

# The suite would listen on every address of the machine.
cat >"$root/site/wstest_on_loopback.py" <<EOF
from twisted.internet import reactor

listen = reactor.listenTCP
reactor.listenTCP = lambda port, factory, *rest: listen(port, factory, interface="127.0.0.1")

from autobahntestsuite import wstest

wstest.run()
EOF
cat >"$work/wstest" <<EOF
#!/bin/sh
exec "$root/python2.7" -m wstest_on_loopback "\$@"
EOF
chmod +x "$work/wstest"
"$work/wstest" --help >/dev/null
mv "$work/wstest" "$root/wstest" # last: its presence says that all the rest is there
