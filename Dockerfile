# All programs of a peer in one image; what runs is the command. The base images can be replaced (mirrors, air-gapped
# builds, tests; the one that builds has Rust, a C compiler and make): docker build --build-arg BUILD_IMAGE=… --build-arg RUNTIME_IMAGE=… .
ARG BUILD_IMAGE=rust:1-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

FROM ${BUILD_IMAGE} AS build
# What the tests prune afterwards.
LABEL pinfold.stage=build
# release, or dev for a quick build; more flags for cargo, such as --offline.
ARG PROFILE=release
ARG CARGO_FLAGS=
WORKDIR /src
COPY . .
RUN cargo build --workspace --exclude pinfold-tests --bins --profile ${PROFILE} ${CARGO_FLAGS} \
 && mkdir /programs \
 && if [ "${PROFILE}" = dev ]; then from=target/debug; else from=target/${PROFILE}; fi \
 && for program in consensus-svc monitor-svc ipfs-connector api-gateway ctl; do \
      cp ${from}/${program} /programs/ && strip /programs/${program} || exit 1; \
    done

FROM ${RUNTIME_IMAGE}
COPY --from=build /programs/ /usr/local/bin/
# /data is the peer's folder; /peers is where the init container of docker-compose.yml sees the folders of all.
RUN useradd --uid 1000 --create-home pinfold \
 && mkdir -p /data /peers/0 /peers/1 /peers/2 /shared \
 && chown -R pinfold /data /peers /shared
USER pinfold
ENV IPFS_CLUSTER_PATH=/data
VOLUME /data
EXPOSE 9094 9095 9096 9097 9098 9099
STOPSIGNAL SIGTERM
# A whole peer, its four services supervised; docker-compose.yml runs each in its own container instead.
CMD ["ctl", "daemon"]
