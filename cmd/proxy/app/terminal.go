package app

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/entrepot-dev/entrepot/oci"
)

// terminalCore writes a log for people. A request is one short line: what was asked for,
// and how it ended. The cause of a failure is on that line only: the lines that other
// packages log about it while the request runs are left out, and errors say what clients
// are told, without the code and without the system's own words. At level debug nothing is
// left out.
type terminalCore struct{ zapcore.Core }

// toldByTheRequest are the messages about failures that the line of the request repeats.
var toldByTheRequest = map[string]bool{
	"the upstream failed":         true,
	"the upstream limits us":      true,
	"a blob could not be fetched": true,
	"bytes from the upstream had not the digest that they were asked for by":        true,
	"it has failed several times in a row and is left alone until it answers again": true,
}

func (c terminalCore) With(fields []zapcore.Field) zapcore.Core {
	return terminalCore{c.Core.With(fields)}
}

func (c terminalCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !c.Enabled(e.Level) || toldByTheRequest[e.Message] && c.Enabled(zapcore.InfoLevel) && !c.Enabled(zapcore.DebugLevel) {
		return ce
	}
	return ce.AddCore(e, c)
}

func (c terminalCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if c.Enabled(zapcore.DebugLevel) {
		return c.Core.Write(e, fields)
	}
	short := make([]zapcore.Field, 0, len(fields))
	for _, f := range fields {
		var known *oci.Error
		if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType && errors.As(err, &known) {
			f = zapcore.Field{Key: f.Key, Type: zapcore.StringType, String: known.Message}
		}
		short = append(short, f)
	}
	if e.Message == "request" {
		e.Message, short = requestLine(short), nil
	}
	return c.Core.Write(e, short)
}

// requestLine returns the line about a request with the fields of package server's log.
func requestLine(fields []zapcore.Field) string {
	m := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(m)
	}
	text := func(key string) string { s, _ := m.Fields[key].(string); return s }
	name := strings.Trim(text("upstream")+"/"+text("repository"), "/")
	switch ref := text("reference"); {
	case strings.Contains(ref, ":"): // a digest
		name += "@" + ref[:min(len(ref), strings.Index(ref, ":")+13)]
	case ref != "" && text("kind") == "manifest":
		name += ":" + ref
	case text("kind") != "manifest" && text("kind") != "blob":
		name = strings.TrimSpace(text("kind") + " " + name + " " + text("path"))
	}
	why := text("error")
	if why == "" {
		why = text("reason")
	}
	// The name says which upstream it is.
	why = strings.TrimPrefix(why, "upstream "+text("upstream")+": ")
	line := fmt.Sprintf("%v %s", m.Fields["status"], name)
	if text("outcome") == "error" {
		return line + ": " + why
	}
	bytes, _ := m.Fields["bytes"].(int64)
	took, _ := m.Fields["duration"].(time.Duration)
	line += fmt.Sprintf(" %s %s %s %s", text("outcome"), bytesOf(bytes), took.Round(time.Millisecond), text("client"))
	if why != "" {
		line += ": " + why
	}
	return line
}
