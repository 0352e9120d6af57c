//go:build containers_image_openpgp

// Command containersimage copies an image with the libraries that Podman, CRI-O, Buildah and Skopeo
// are made of. Its tests build it with the tags that spare it C libraries:
//
//	go build -tags containers_image_openpgp,exclude_graphdriver_btrfs ./containersimage
//
//	containersimage [-registries FILE] [-arch ARCH] [-store DIR] [-zstd-chunked] FROM TO
//
// FROM and TO are references with a transport, as Skopeo takes them. With -store, TO is a name in a
// store in that directory, which pulls parts of layers where it can; the store is kept.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/pkg/compression"
	"go.podman.io/image/v5/signature"
	istorage "go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/transports/alltransports"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage"
	"go.podman.io/storage/pkg/reexec"
)

func main() {
	if reexec.Init() { // the store unpacks in processes of its own
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() (err error) {
	registries := flag.String("registries", "", "registries.conf")
	arch := flag.String("arch", "", "architecture to choose from an index")
	dir := flag.String("store", "", "directory of the store that TO is a name in")
	chunked := flag.Bool("zstd-chunked", false, "compress layers as zstd:chunked")
	flag.Parse()
	if flag.NArg() != 2 {
		return errors.New("usage: containersimage [flags] FROM TO")
	}
	from, err := alltransports.ParseImageName(flag.Arg(0))
	if err != nil {
		return err
	}
	source := &types.SystemContext{SystemRegistriesConfPath: *registries, ArchitectureChoice: *arch, DockerInsecureSkipTLSVerify: types.OptionalBoolTrue}
	destination := &types.SystemContext{ArchitectureChoice: *arch}
	options := &copy.Options{SourceCtx: source, DestinationCtx: destination}
	var to types.ImageReference
	if *dir == "" {
		to, err = alltransports.ParseImageName(flag.Arg(1))
	} else {
		var store storage.Store
		store, err = storage.GetStore(storage.StoreOptions{
			GraphRoot: filepath.Join(*dir, "root"), RunRoot: filepath.Join(*dir, "run"), GraphDriverName: "overlay",
			PullOptions: map[string]string{"enable_partial_images": "true", "use_hard_links": "false"},
		})
		if err != nil {
			return err
		}
		defer func() { _, e := store.Shutdown(true); err = errors.Join(err, e) }()
		to, err = istorage.Transport.ParseStoreReference(store, flag.Arg(1))
	}
	if err != nil {
		return err
	}
	if *chunked {
		level := 1
		destination.CompressionFormat, destination.CompressionLevel = &compression.ZstdChunked, &level
		options.ForceCompressionFormat = true
	}
	policy, err := signature.NewPolicyContext(&signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}})
	if err != nil {
		return err
	}
	_, err = copy.Image(context.Background(), policy, to, from, options)
	return err
}
