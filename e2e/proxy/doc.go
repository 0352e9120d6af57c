// Package proxy runs the real entrepot program in tests: it builds it once per
// test process, starts it on free ports with a configuration that mirrors fake
// hubs, and ends it with the test.
//
// A test package that uses it has
//
//	func TestMain(m *testing.M) { os.Exit(proxy.Main(m)) }
//
// so that the built program is removed at the end.
package proxy
