package images

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxDepth is how deep lists and keys may lie in each other. No object of Kubernetes
// comes near it.
const maxDepth = 200

// errTooDeep says that an input nests more than that.
var errTooDeep = fmt.Errorf("lists and keys lie more than %d deep in each other", maxDepth)

// readYAML reads the documents of a stream one after the other.
func (f *Found) readYAML(text []byte, o Options) error {
	told := f.Format // by the caller, or Kubernetes for any YAML
	isCompose, isOther := false, false
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("it is no valid YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
		}
		root := &doc
		if root.Kind == yaml.DocumentNode {
			root = root.Content[0]
		}
		if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
			continue
		}
		if root.Kind != yaml.MappingNode && root.Kind != yaml.SequenceNode {
			return fmt.Errorf("line %d: it is neither a list of images, nor YAML with keys and values, nor a Dockerfile", root.Line)
		}
		if told == Compose || o.Format != Kubernetes && looksLikeCompose(root) {
			isCompose = true
			err = f.readCompose(root, o.Env)
		} else {
			isOther = true
			err = f.walk(root, 0)
		}
		if err != nil {
			return err
		}
	}
	if isCompose && !isOther {
		f.Format = Compose
	}
	return nil
}

// looksLikeCompose tells a Compose file from an object of Kubernetes.
func looksLikeCompose(root *yaml.Node) bool {
	services := value(root, "services")
	return services != nil && services.Kind == yaml.MappingNode && value(root, "apiVersion") == nil
}

// value gives the value of a key of a mapping; nil where there is none.
func value(n *yaml.Node, key string) *yaml.Node {
	n = resolve(n)
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return resolve(n.Content[i+1])
		}
	}
	return nil
}

// resolve follows an alias to what it stands for.
func resolve(n *yaml.Node) *yaml.Node {
	for range maxDepth {
		if n == nil || n.Kind != yaml.AliasNode {
			return n
		}
		n = n.Alias
	}
	return nil
}

// isText tells whether a node is a text that says something.
func isText(n *yaml.Node) bool {
	return n != nil && n.Kind == yaml.ScalarNode && n.Tag == "!!str" && strings.TrimSpace(n.Value) != ""
}
