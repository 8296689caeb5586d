#!/usr/bin/env bash
# A throwaway PostgreSQL on a free loopback port, for tests.
#
#   scripts/postgres.sh run -- COMMAND…   run COMMAND with $LIUYI_TEST_POSTGRES_URL set, then stop and remove the server
#   eval "$(scripts/postgres.sh start)"   start one and set the variable in this shell
#   scripts/postgres.sh stop              stop and remove the one that `start` started
#
# Debian's package `postgresql` is installed if there is none (as root). The server never runs as root.
set -euo pipefail

home="${TMPDIR:-/tmp}/liuyi-postgres-$(id -u)"

fail() {
  echo "postgres.sh: $*" >&2
  exit 1
}

bin_folder() {
  local found
  found=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
  [ -n "$found" ] || found=$(dirname "$(command -v initdb 2>/dev/null || true)")
  [ -x "$found/initdb" ] && echo "$found"
}

install_server() {
  [ "$(id -u)" = 0 ] || fail "there is no PostgreSQL here; install Debian's package postgresql"
  export DEBIAN_FRONTEND=noninteractive
  {
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends postgresql-common
    # Otherwise the next package would start a server of its own.
    sed -i -E 's/^#?(create_main_cluster) .*/\1 = false/' /etc/postgresql-common/createcluster.conf
    apt-get install -y -qq --no-install-recommends postgresql
  } >&2
}

# Runs a command as the server's user: never as root.
as_server() {
  if [ "$(id -u)" = 0 ]; then
    (cd / && exec runuser -u postgres -- env -i PATH="$PATH" LANG=C.UTF-8 "$@")
  else
    (cd / && exec env -i PATH="$PATH" LANG=C.UTF-8 HOME=/ "$@")
  fi
}

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Starts a server in the folder $1 and prints its URL.
start_in() {
  local folder=$1 port password
  mkdir -p "$folder"
  password=$(python3 -c 'import secrets; print(secrets.token_hex(16))')
  (umask 077 && printf '%s' "$password" > "$folder/password")
  [ "$(id -u)" != 0 ] || chown -R postgres "$folder"
  as_server "$bin/initdb" --pgdata="$folder/data" --username=liuyi --pwfile="$folder/password" \
    --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 --no-sync > "$folder/initdb.log" 2>&1 \
    || fail "initdb failed: $(tail -3 "$folder/initdb.log")"
  for _ in 1 2 3; do
    port=$(free_port)
    if as_server "$bin/pg_ctl" --pgdata="$folder/data" --log="$folder/data/server.log" --wait --timeout=60 \
      -o "-h 127.0.0.1 -p $port -k '' -c fsync=off -c full_page_writes=off -c synchronous_commit=off -c max_connections=200" \
      start > /dev/null 2>&1 < /dev/null; then
      echo "postgresql://liuyi:$password@127.0.0.1:$port/postgres"
      return
    fi
  done
  fail "the server does not start: $(tail -3 "$folder/data/server.log" 2>/dev/null)"
}

stop_in() {
  local folder=$1
  if [ -e "$folder/data/postmaster.pid" ]; then
    as_server "$bin/pg_ctl" --pgdata="$folder/data" --mode=immediate --wait stop > /dev/null 2>&1 || true
  fi
  rm -rf "$folder"
}

command=${1:-}
shift || true
case "$command" in start | stop | run) ;; *) fail "say start, stop, or run -- COMMAND" ;; esac
bin=$(bin_folder) || {
  [ "$command" != stop ] || fail "none is running"
  install_server
  bin=$(bin_folder) || fail "PostgreSQL was installed but is not found"
}

case "$command" in
  start)
    [ ! -e "$home" ] || fail "one is running already; stop it with: $0 stop"
    trap 'stop_in "$home"' ERR
    url=$(start_in "$home")
    echo "export LIUYI_TEST_POSTGRES_URL=$url"
    ;;
  stop)
    [ -e "$home" ] || fail "none is running"
    stop_in "$home"
    ;;
  run)
    [ "${1:-}" != "--" ] || shift
    [ $# -gt 0 ] || fail "say what to run: $0 run -- COMMAND"
    folder=$(mktemp -d "${TMPDIR:-/tmp}/liuyi-postgres.XXXXXX")
    chmod 755 "$folder"
    trap 'stop_in "$folder"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    LIUYI_TEST_POSTGRES_URL=$(start_in "$folder")
    export LIUYI_TEST_POSTGRES_URL
    "$@"
    ;;
esac
