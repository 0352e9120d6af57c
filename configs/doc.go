// Package configs turns a YAML file, the environment and command-line flags
// into one checked Config.
//
// It promises that a Config that Load gives can be used as it is: every key is
// known, every value has the right type and is possible, every default is
// filled in. Where that is not so, the error names the file and line, the key,
// and what is allowed. It opens no file but the one that it is told to read
// and touches no network; whether a certificate or a password file can be read
// is found out by who uses it.
package configs
