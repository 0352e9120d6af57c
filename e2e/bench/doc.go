// Command bench measures Entrepot beside what could stand in its place: nginx
// with static files, nginx as a cache, the CNCF's registry in proxy mode, and a
// pull without any cache. It builds and starts all of them and a fake Docker Hub
// on the loopback interface, puts the same load on each in turns, and prints a
// table of figures, ratios and bars; docs/performance.md says how to read it.
//
//	go run ./e2e/bench              all rows, the better part of an hour
//	go run ./e2e/bench -quick       all rows with less of everything, under two minutes
//	go run ./e2e/bench -list        the rows' names
//	go run ./e2e/bench -only blob   the rows whose name has "blob"
//	go run ./e2e/bench -out DIR     also the table, all rounds as JSON, and plots
//	go run ./e2e/bench -from a.json,b.json   the table of earlier runs together
//
// The absolute figures are the machine's. What counts is the ratio of two
// subjects that were measured in turns, and the CPU time of a unit of work, which
// stays true where the load is what limits.
package main
