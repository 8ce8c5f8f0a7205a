#!/usr/bin/env bash
# A team's Prefect server on a plain Debian machine: PostgreSQL, API authentication, systemd, and the deployments.
# Run it as root from a checkout at /opt/musicgen-flows, and again after every `git pull`. Existing settings are kept.
#
#   deployments/team/setup_server.sh HOST STORAGE
#
# HOST: name or address under which other machines and browsers reach this one.
# STORAGE: storage that all machines can read and write: gs://BUCKET/FOLDER, or a folder mounted at the same path.
#          Results go to STORAGE/results; jobs without parameters use STORAGE/archives, tokens, runs and music.
# Both are needed the first time only. Another STORAGE applies to results; the jobs' locations are not changed.
set -euo pipefail
. "$(dirname "$0")/common.sh"

main() {
    [[ $# -eq 2 || ($# -eq 0 && -e $config/server.env) ]] || fail "usage: setup_server.sh HOST STORAGE"
    check_machine
    install_debian postgresql python3 python3-venv ca-certificates git
    make_user
    # No GPU packages: a server registers the flows and never runs them.
    install_packages "$software/server" --prune torch --prune torchaudio --prune audiocraft --prune peft
    systemctl --quiet enable --now postgresql
    write_environments "${1:-}"
    make_database
    install_unit musicgen-server.service
    start_unit musicgen-server.service "$units/musicgen-server.service" "$config/server.env" "$software/server/installed.txt"
    as_musicgen "$software/server/bin/python" -m deployments.team.register ${2:+"$2"}
}

# Two passwords, generated once. Files are complete when they appear, and only root can ever read them.
write_environments() {
    local host=$1 port user=musicgen api database
    if [[ ! -e $config/server.env ]]; then
        port=$(as_postgres -tAc 'show port')
        api=$user:$(random_password)
        database=$user:$(random_password)
        write_secret server.env <<END
# Of musicgen-server. After a change: systemctl restart musicgen-server
# Behind a proxy that does TLS: 127.0.0.1 here, and https:// in the next line and in client.env.
PREFECT_SERVER_API_HOST=0.0.0.0
PREFECT_SERVER_UI_API_URL=http://$host:4200/api
PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER=P7D
PREFECT_SERVER_API_AUTH_STRING=$api
PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg://$database@127.0.0.1:$port/$user
END
    fi
    if [[ ! -e $config/client.env ]]; then
        write_secret client.env <<END
# Settings with which workers and people reach the Prefect server. The UI asks for the second value.
$(sed -n 's/^PREFECT_SERVER_UI_API_URL=/PREFECT_API_URL=/p' "$config/server.env")
$(sed -n 's/^PREFECT_SERVER_API_AUTH_STRING=/PREFECT_API_AUTH_STRING=/p' "$config/server.env")
END
    fi
}

write_secret() (
    umask 077
    cat >"$config/$1.new"
    mv "$config/$1.new" "$config/$1"
)

random_password() {
    head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n'
}

as_postgres() (
    cd /
    as_user postgres psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 "$@"
)

# The password goes to psql through a pipe: arguments can be read by everyone.
make_database() {
    local password
    password=$(sed -n 's|^PREFECT_SERVER_DATABASE_CONNECTION_URL=.*//musicgen:\(.*\)@127.0.0.1:.*|\1|p' \
        "$config/server.env")
    if [[ -z $password ]]; then
        return # the line names a database elsewhere
    fi
    as_postgres <<END
set log_statement = 'none';
select 'create role musicgen login' where not exists (select from pg_roles where rolname = 'musicgen') \gexec
alter role musicgen password '$password';
select 'create database musicgen owner musicgen'
 where not exists (select from pg_database where datname = 'musicgen') \gexec
END
}

main "$@"
