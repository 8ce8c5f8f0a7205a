#!/usr/bin/env bash
# Workers of a team's Prefect server on this Debian machine, one per GPU, under systemd.
# Run it as root from a checkout at /opt/musicgen-flows, and again after every `git pull`. Existing settings are kept.
#
#   deployments/team/setup_worker.sh [NAME...]
#
# NAME: QUEUE:GPU, the queue that the worker takes jobs from and the number of its GPU, such as default:0 tokenizing:1.
#       GPU alone: all queues, one job after the other. Four GPUs for a job: default:0-1-2-3. None: tokenizing:none.
#       Without a NAME: a worker for each GPU that nvidia-smi lists, from all queues.
# /etc/musicgen/client.env must be here: copy it from the server.
set -euo pipefail
. "$(dirname "$0")/common.sh"

main() {
    local name names=("$@")
    check_machine
    [[ -e $config/client.env ]] || fail "there is no $config/client.env. Copy it from the server"
    if [[ ${#names[@]} -eq 0 ]]; then
        mapfile -t names < <(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true)
        [[ ${#names[@]} -gt 0 ]] || fail "nvidia-smi lists no GPU. Install NVIDIA's driver, or name the workers"
    fi
    # A C compiler and Python's headers: Triton builds its launchers when a job starts.
    install_debian python3 python3-venv python3-dev gcc ca-certificates git
    make_user
    chown root:root "$config/client.env" && chmod 600 "$config/client.env"
    install_packages "$software/worker"
    write_worker_environment
    install_unit musicgen-worker@.service
    for name in "${names[@]}"; do
        start_unit "musicgen-worker@$name.service" "$units/musicgen-worker@.service" "$config/client.env" \
            "$config/worker.env" "$software/worker/installed.txt"
    done
}

write_worker_environment() (
    umask 077
    if [[ ! -e $config/worker.env ]]; then
        cat >"$config/worker.env" <<END
# Of all workers of this machine. After a change: systemctl restart 'musicgen-worker@*'
# GOOGLE_APPLICATION_CREDENTIALS=$config/google.json (on Google's machines the service account is found automatically)
# WANDB_API_KEY=
# HF_TOKEN=
END
    fi
)

main "$@"
