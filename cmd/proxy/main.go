// The entrepot command under the name of its directory: see cmd/entrepot.
package main

import "github.com/entrepot-dev/entrepot/cmd/proxy/app"

func main() { app.Main() }
