package app

import "github.com/spf13/pflag"

// addChecked adds a flag whose value is checked as it is read: a wrong one is one of
// usage, and is told before anything is done.
func addChecked(flags *pflag.FlagSet, name, shorthand, value, usage string, check func(text string) error) {
	flags.VarP(&checked{value, check}, name, shorthand, usage)
}

// checked is the value of such a flag. Its text is had by GetString.
type checked struct {
	text  string
	check func(text string) error
}

// Set takes text if it passes the check.
func (c *checked) Set(text string) error {
	if err := c.check(text); err != nil {
		return err
	}
	c.text = text
	return nil
}

func (c *checked) String() string { return c.text }

// Type is what GetString asks for.
func (c *checked) Type() string { return "string" }
