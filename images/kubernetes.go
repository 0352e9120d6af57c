package images

import "go.yaml.in/yaml/v3"

// containerLists are the keys of lists of containers, whatever object they are in.
var containerLists = map[string]bool{"containers": true, "initContainers": true, "ephemeralContainers": true}

// walk takes the images of a document: of each container in a list of containers, of
// each image volume, and of each other key "image" that has a text, as custom
// resources have. An alias is not followed: what it stands for is in the document.
func (f *Found) walk(n *yaml.Node, depth int) error {
	if depth > maxDepth {
		return errTooDeep
	}
	switch n.Kind {
	case yaml.SequenceNode:
		for _, item := range n.Content {
			if err := f.walk(item, depth+1); err != nil {
				return err
			}
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if err := f.walkField(n.Content[i].Value, n.Content[i+1], depth); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *Found) walkField(key string, v *yaml.Node, depth int) error {
	switch {
	case key == "image" && isText(v):
		// In a list of containers it was taken already.
		if _, err := Normalize(v.Value); err != nil {
			return nil // a picture, a description: a custom resource may call anything so
		}
		return f.add(v.Line, v.Value, "")
	case key == "image" && isText(value(v, "reference")):
		r := value(v, "reference")
		return f.add(r.Line, r.Value, "")
	case containerLists[key] && v.Kind == yaml.SequenceNode:
		for _, c := range v.Content {
			image := value(c, "image")
			if !isText(image) {
				continue // it is filled in when the object is made, or elsewhere
			}
			if err := f.add(image.Line, image.Value, ""); err != nil {
				return err
			}
		}
	}
	return f.walk(v, depth+1)
}
