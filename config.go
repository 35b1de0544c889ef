// Package weave holds what the binary takes along of the source tree: the
// description of the managed plugin, so that `weave launch` can make it.
package weave

import _ "embed" // config.json

// ConfigJSON is config.json, which declares the managed plugin's settings,
// mounts and capabilities to Docker.
//
//go:embed config.json
var ConfigJSON []byte
