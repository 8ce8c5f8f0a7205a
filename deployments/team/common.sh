# Functions and paths of setup_server.sh and setup_worker.sh; sourced by both.
# shellcheck shell=bash

code=/opt/musicgen-flows    # the checkout: at the same path on every machine, since deployments name it
software=/opt/musicgen      # packages, owned by root: the services' user can read and run them, but not change them
state=/var/lib/musicgen     # home of the services' user: Prefect's files and caches. Root runs nothing below it
config=/etc/musicgen        # environment files, owned by root
units=/etc/systemd/system
umask 022                   # the services must be able to read what root installs
export HOME=/root           # sudo -E keeps the caller's, and uv and pip would use its caches and settings
export UV_PYTHON_INSTALL_DIR=$software/python # where uv installs Python if the machine has no 3.11 or 3.12
export UV_LINK_MODE=copy DEBIAN_FRONTEND=noninteractive

# Not root's own Pythons, which the services' user can't read.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

fail() {
    echo "error: $*" >&2
    exit 1
}

check_machine() {
    [[ $EUID -eq 0 ]] || fail "this needs root. Run it with sudo"
    [[ $(realpath "$(dirname "$0")/../..") == "$code" ]] || fail "the repository must be at $code. Clone it there"
    command -v apt-get >/dev/null || fail "this is no Debian: apt-get is missing"
    check_checkout
    cd "$code" || exit
}

# Root runs the checkout's code: anyone who can change a file there could become root.
check_checkout() {
    local foreign of_others=(! -type l '(' ! -user root -o -perm /o+w -o -perm /g+w ! -group root ')' -print -quit)
    foreign=$(find / "${code%/*}" -maxdepth 0 "${of_others[@]}" && find "$code" "${of_others[@]}")
    [[ -z $foreign ]] || fail "$foreign can be changed by others than root, who runs this checkout." \
        "Give it to root: chown -R root:root $code && chmod -R go-w $code"
}

# install_debian PACKAGE...
install_debian() {
    local package
    for package; do
        if [[ $(dpkg-query -Wf '${Status}' "$package" 2>/dev/null) != "install ok installed" ]]; then
            echo "Installing Debian's $*"
            apt-get update -qq
            apt-get install -qq -y --no-install-recommends "$@" >/dev/null
            return
        fi
    done
}

make_user() {
    if ! id musicgen >/dev/null 2>&1; then
        useradd --system --create-home --home-dir "$state" --shell /usr/sbin/nologin musicgen
    fi
    install -d -m 755 -o musicgen -g musicgen "$state"
    install -d -m 755 -o root -g root "$software" "$config"
}

# install_packages VENV [UV_EXPORT_OPTION...]: install the pinned versions and this checkout, unless they are there.
install_packages() {
    local venv=$1 wanted
    shift
    if [[ ! -x $software/uv/bin/uv ]]; then
        python3 -m venv "$software/uv"
        "$software/uv/bin/pip" install --quiet uv
    fi
    wanted=$("$software/uv/bin/uv" export --quiet --no-dev --no-header "$@")
    if [[ -e $venv/installed.txt && $(<"$venv/installed.txt") == "$wanted" ]]; then
        return
    fi
    echo "Installing Python packages in $venv"
    "$software/uv/bin/uv" venv --quiet --allow-existing --python '>=3.11,<3.13' "$venv"
    # Compiled now: the services' user can't write here, and every job would compile Prefect again.
    "$software/uv/bin/uv" pip sync --quiet --compile-bytecode --python "$venv/bin/python" - <<<"$wanted"
    echo "$wanted" >"$venv/installed.txt"
}

# install_unit FILE
install_unit() {
    if ! cmp --silent "$code/deployments/team/$1" "$units/$1"; then
        install -m 644 "$code/deployments/team/$1" "$units/$1"
        systemctl daemon-reload
    fi
}

# start_unit UNIT FILE...: start a unit, now and at every boot. A running one is restarted only if a FILE is newer than
# its start, since a restart ends its jobs.
start_unit() {
    local unit=$1 file since
    shift
    if ! systemctl --quiet is-enabled "$unit" 2>/dev/null; then
        systemctl --quiet enable "$unit"
    fi
    systemctl start "$unit"
    since=$(systemctl show --timestamp=unix --property ActiveEnterTimestamp --value "$unit")
    for file; do
        if [[ $(stat -c %Y "$file") -gt ${since#@} ]]; then
            echo "Restarting $unit: $file is newer"
            systemctl restart "$unit"
            return
        fi
    done
}

# as_musicgen COMMAND...: run in the clients' environment, which keeps the password off the command line.
as_musicgen() (
    set -a
    # shellcheck disable=SC1091
    . "$config/client.env"
    set +a
    HOME=$state as_user musicgen "$@"
)

# as_user USER COMMAND...: run without root's terminal, into which the command could inject input.
as_user() {
    local user=$1
    shift
    setsid --wait runuser -u "$user" -- "$@"
}
