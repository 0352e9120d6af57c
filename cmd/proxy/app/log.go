package app

import (
	"bytes"
	"io"
	"os"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"

	"github.com/entrepot-dev/entrepot/configs"
)

// newLog makes the log that a configuration asks for, written to w, and its level,
// which may be changed. It buffers nothing itself. Where w is an outlet, a line of
// the log tells how many lines that has dropped. For people, see terminalCore.
func newLog(cfg configs.Log, w io.Writer) (*zap.Logger, zap.AtomicLevel, error) {
	level, err := zap.ParseAtomicLevel(cfg.Level)
	if err != nil {
		return nil, level, err
	}
	e := zap.NewProductionEncoderConfig()
	e.TimeKey, e.MessageKey = "time", "message"
	e.EncodeDuration = zapcore.SecondsDurationEncoder
	var encoder zapcore.Encoder
	people := forPeople(cfg.Format, w)
	if people {
		e.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05")
		e.ConsoleSeparator = " "
		e.EncodeLevel = zapcore.CapitalLevelEncoder
		e.EncodeDuration = zapcore.StringDurationEncoder
		encoder = zapcore.NewConsoleEncoder(e)
	} else {
		e.EncodeTime = zapcore.RFC3339NanoTimeEncoder
		encoder = zapcore.NewJSONEncoder(e)
	}
	if o, ok := w.(*outlet); ok {
		o.notice = func(n int) []byte { return droppedLine(encoder.Clone(), n) }
	}
	core := zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(lines{w})), level)
	if people {
		core = terminalCore{core}
	}
	return zap.New(core), level, nil
}

// droppedLine makes the line that says that n lines of the log were dropped.
func droppedLine(encoder zapcore.Encoder, n int) []byte {
	line, err := encoder.EncodeEntry(zapcore.Entry{Level: zapcore.WarnLevel, Time: time.Now(), Message: "log lines dropped"}, []zap.Field{zap.Int("lines", n)})
	if err != nil {
		return nil
	}
	defer line.Free()
	return bytes.Clone(line.Bytes())
}

// forPeople tells whether log lines are to be read by people rather than
// programs.
func forPeople(format string, w io.Writer) bool {
	switch format {
	case "console":
		return true
	case "json":
		return false
	}
	return isTerminal(w)
}

func isTerminal(w io.Writer) bool {
	if o, ok := w.(*outlet); ok {
		w = o.target()
	}
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
