#!/bin/sh
# One-shot container of docker-compose.yml: makes the folders of three peers with one secret, the first time only.
# What a peer announces are the names of its containers.
set -eu

if [ ! -f /shared/secret ]; then
  od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > /shared/secret.new
  mv /shared/secret.new /shared/secret
fi
secret=$(cat /shared/secret)

for peer in 0 1 2; do
  folder=/peers/$peer
  if [ -f "$folder/service.json" ]; then
    echo "peer $peer is there already"
    continue
  fi
  ctl --config "$folder" init --ipfs embedded --secret "$secret" \
    --set "cluster.peername=peer$peer" \
    --set cluster.replication_factor_min=2 \
    --set cluster.replication_factor_max=2 \
    --set cluster.monitor_ping_interval=2s \
    --set services.consensus.listen_multiaddress=/ip4/0.0.0.0/tcp/9096 \
    --set "services.consensus.announce_multiaddress=/dns4/peer$peer-consensus/tcp/9096" \
    --set services.monitor.listen_multiaddress=/ip4/0.0.0.0/tcp/9098 \
    --set "services.monitor.announce_multiaddress=/dns4/peer$peer-monitor/tcp/9098" \
    --set services.connector.listen_multiaddress=/ip4/0.0.0.0/tcp/9099 \
    --set "services.connector.announce_multiaddress=/dns4/peer$peer-connector/tcp/9099" \
    --set api.restapi.http_listen_multiaddress=/ip4/0.0.0.0/tcp/9094 \
    --set "services.gateway.announce_multiaddress=/dns4/peer$peer-gateway/tcp/9094"
done

# What the other peers join through.
id=$(sed -n 's/.*"id": *"\([^"]*\)".*/\1/p' /peers/0/identity.json | head -n 1)
echo "/dns4/peer0-consensus/tcp/9096/p2p/$id" > /shared/bootstrap
echo "three peers are ready to start; the first is $id"
