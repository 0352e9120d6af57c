# docker build -t entrepot .
#
# The bases are pinned to a release; what is in the image besides the binary and
# the roots of the public certificate authorities is nothing: no shell, no user
# database, no package manager.

FROM --platform=$BUILDPLATFORM golang:1.26.8-bookworm AS build
WORKDIR /src

# The modules first: they change less often than the code.
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download

# With .git, so that `entrepot version` tells the commit.
COPY . .
ARG TARGETOS
ARG TARGETARCH
RUN --mount=type=cache,target=/go/pkg/mod \
    --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -buildvcs=auto -trimpath -ldflags="-s -w" -o /out/entrepot ./cmd/proxy \
 && install -d -m 0700 /out/lib/entrepot

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/entrepot /
# The number that images without a user database commonly use for "nobody". A
# directory of the host's that is mounted in the place of the volume has to belong
# to it.
COPY --from=build --chown=65532:65532 /out/lib/ /var/lib/
USER 65532:65532

# Declared after it was made, so that a new volume belongs to the user.
VOLUME /var/lib/entrepot
# The registry API. The admin listener is on 127.0.0.1:5001 inside the container,
# unless ENTREPOT_ADMIN_LISTEN says otherwise.
EXPOSE 5000

# A file of settings is best given by ENTREPOT_CONFIG: the health check reads it too.
HEALTHCHECK --interval=15s --timeout=5s --start-period=5s --retries=3 CMD ["/entrepot", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/entrepot"]
CMD ["serve"]
