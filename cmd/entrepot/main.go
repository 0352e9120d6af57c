// The entrepot command: a caching pull-through registry proxy. `go install` names a program after
// its directory, so this one is called entrepot.
package main

import "github.com/entrepot-dev/entrepot/cmd/proxy/app"

func main() { app.Main() }
