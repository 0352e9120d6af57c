package images

import (
	"fmt"

	"go.yaml.in/yaml/v3"
)

// readCompose takes the images of the services, and of volumes that are images. A
// service that is built names what comes out of that, and not what is pulled.
func (f *Found) readCompose(root *yaml.Node, env func(string) (string, bool)) error {
	services := value(root, "services")
	if services == nil || services.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: a Compose file has services", root.Line)
	}
	for i := 1; i < len(services.Content); i += 2 {
		s := services.Content[i]
		if image := inherited(s, "image", 0); isText(image) && inherited(s, "build", 0) == nil {
			if err := f.addCompose(image, inherited(s, "platform", 0), env); err != nil {
				return err
			}
		}
		volumes := inherited(s, "volumes", 0)
		if volumes == nil || volumes.Kind != yaml.SequenceNode {
			continue
		}
		for _, v := range volumes.Content {
			if kind, source := value(v, "type"), value(v, "source"); kind != nil && kind.Value == "image" && isText(source) {
				if err := f.addCompose(source, nil, env); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// inherited gives the value of a key of a mapping, or of those that it merges (<<).
func inherited(n *yaml.Node, key string, depth int) *yaml.Node {
	if v := value(n, key); v != nil {
		return v
	}
	merged := value(n, "<<")
	switch {
	case merged == nil || depth > 8:
		return nil
	case merged.Kind == yaml.SequenceNode:
		for _, m := range merged.Content[:min(len(merged.Content), 8)] {
			if v := inherited(m, key, depth+4); v != nil {
				return v
			}
		}
		return nil
	}
	return inherited(merged, key, depth+1)
}

func (f *Found) addCompose(image, platform *yaml.Node, env func(string) (string, bool)) error {
	e := expander{env: env}
	text := e.expand(image.Value, 0)
	p := ""
	if isText(platform) {
		p = e.expand(platform.Value, 0)
	}
	if e.problem != "" {
		return f.miss(image.Line, image.Value, e.problem)
	}
	return f.add(image.Line, text, p)
}
