// Package clouds gets short-lived registry logins from Amazon, Google and Microsoft: with
// what the cloud gives the machine, the pod or the task that this process runs in. It keeps
// each login, renews it before it ends, and knows which hosts are a cloud's registries.
//
// It speaks the documented HTTP APIs itself; docs/decisions/0014 says why.
package clouds
