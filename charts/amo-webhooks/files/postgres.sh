# The Postgres for trial. It starts on whatever image has Postgres' programs, and again on what it finds in its volume.
set -eu
PATH="$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -n 1):$PATH"
data=/var/lib/amo-postgres/data
if [ ! -d "$data" ]; then
    # Under another name till all is there: whatever ends this halfway, the next start begins anew.
    rm -rf "$data.new"
    initdb --pgdata="$data.new" --username=amo --pwfile=/run/secrets/amo/password \
        --auth-local=reject --auth-host=scram-sha-256 --encoding=UTF8 --locale=C
    echo "host all all all scram-sha-256" >>"$data.new/pg_hba.conf"
    echo "CREATE DATABASE amo;" | postgres --single -D "$data.new" postgres
    mv "$data.new" "$data"
fi
exec postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories=/tmp
