# Sourced by what wants the cluster test on a machine without Docker: with_cluster FOLDER COMMAND…
#
# FOLDER holds a cluster that is built and started by its own apt.sh, build.sh, images.sh, up.sh and taken down by down.sh; env.sh tells
# how to reach it. However COMMAND ends, and also when this shell is interrupted, nothing of the cluster is left.

_cluster_base() { # a bare Debian with Python has no venv: the same with it, for building only
    local context
    context=$(mktemp -d)
    printf 'FROM e2e.local/python:1\nRUN apt-get update -qq && apt-get install -qq -y --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*\n' >"$context/Dockerfile"
    buildah build -q --layers --isolation chroot --network host -t e2e.local/python-venv:1 "$context"
    rm -r "$context"
}

_cluster_telegraf() { # what the chart's exporter runs, out of its Go module and with the two plugins that it uses
    local context
    context=$(mktemp -d)
    CGO_ENABLED=0 GOBIN=$context go install -trimpath -ldflags '-s -w' -tags custom,inputs.pgbouncer,outputs.prometheus_client github.com/influxdata/telegraf/cmd/telegraf@v1.37.2
    printf 'FROM scratch\nCOPY telegraf /usr/bin/telegraf\nENV PATH=/usr/bin\nUSER 10001:0\n' >"$context/Dockerfile"
    buildah build -q --isolation chroot -t e2e.local/telegraf:1 "$context"
    rm -f "$K8S_IMAGES/telegraf.tar"
    buildah push -q e2e.local/telegraf:1 "docker-archive:$K8S_IMAGES/telegraf.tar:e2e.local/telegraf:1"
    rm -r "$context"
}

with_cluster() (
    set -euo pipefail
    folder=$(cd "$1" && pwd)
    shift
    log=${TMPDIR:-/tmp}/cluster-build.log
    began=$SECONDS
    . "$folder/env.sh"
    # There is one such cluster on a machine: who comes second waits until the first one's is gone.
    mkdir -p "$CLUSTER_CACHE"
    exec 9>"$CLUSTER_CACHE/lock"
    flock 9
    { "$folder/apt.sh" && "$folder/build.sh" && "$folder/images.sh" && _cluster_base && _cluster_telegraf; } >"$log" 2>&1 || { tail -20 "$log"; return 1; }
    echo "cluster built after $((SECONDS - began)) s"
    child=
    trap 'set +e; [ -z "$child" ] || { kill "$child" 2>/dev/null; wait "$child"; }; "$folder/down.sh" >>"$log" 2>&1' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    "$folder/up.sh" 9>&-
    # The machine's own settings for pip and its certificates hold in a build too.
    build="buildah build --layers --isolation chroot --network host"
    for file in /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do [ -e "$file" ] && build+=" -v $file:$file:ro"; done
    build+=" --build-arg PYTHON_IMAGE=e2e.local/python:1 --build-arg BUILD_IMAGE=e2e.local/python-venv:1 --build-arg BASE_IMAGE=e2e.local/python:1"
    export PATH=$K8S_BIN:$PATH
    export E2E_BUILD=$build E2E_POSTGRES_IMAGE=e2e.local/postgres:1 E2E_TELEGRAF_IMAGE=e2e.local/telegraf:1 E2E_INGRESS=$NODE_IP:30080
    export E2E_ENTER="nsenter --net=/run/netns/$K8S_NS --"
    export E2E_LOAD_IMAGE="${CTR:-ctr} -a $CTR_SOCK -n k8s.io images import"
    # In the background: bash puts off a signal's trap until a program in the foreground has ended.
    "$@" 9>&- &
    child=$!
    wait "$child"
)
