package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Read returns the settings of an instance: those until the next boot go before the others.
func (p Place) Read(instance string) (File, error) {
	if err := CheckName(instance); err != nil {
		return File{}, err
	}
	for _, runtime := range []bool{true, false} {
		path := filepath.Join(p.settings(runtime), instance+".conf")
		text, err := os.ReadFile(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return File{path, string(text)}, err
		}
	}
	return File{}, fmt.Errorf("it has no settings in %s", p.settings(false))
}

// SetOption returns the text of settings with an option of proxyd(8) set in OPTIONS=, before which a former value counts no more.
func SetOption(text, option, value string) (string, error) {
	var lines []string
	var options []string
	for line := range strings.Lines(text) {
		given, isOptions := strings.CutPrefix(strings.TrimSpace(line), "OPTIONS=")
		if !isOptions {
			if strings.HasSuffix(strings.TrimRight(line, "\n"), `\`) {
				return "", errUnread
			}
			lines = append(lines, strings.TrimRight(line, "\n")+"\n")
			continue
		}
		words, err := readOptions(given)
		if err != nil {
			return "", err
		}
		options = options[:0] // the last line counts
		for _, word := range words {
			if !strings.HasPrefix(word, "--"+option+"=") {
				options = append(options, word)
			}
		}
	}
	line, err := Variable("OPTIONS", Words(append(options, "--"+option+"="+value)))
	return strings.Join(lines, "") + line, err
}

var (
	errQuote  = errors.New("OPTIONS= has a quote or a backslash too few")
	errUnread = errors.New("its settings have an OPTIONS= that proxyctl cannot read")
)

// readOptions returns the words of OPTIONS=, written as [Variable] and [Words] write it, or as people mostly do.
func readOptions(given string) ([]string, error) {
	if quoted, ok := strings.CutPrefix(given, `"`); ok {
		if quoted, ok = strings.CutSuffix(quoted, `"`); !ok {
			return nil, errUnread
		}
		var text strings.Builder
		for i := 0; i < len(quoted); i++ {
			switch {
			case quoted[i] == '"':
				return nil, errUnread
			case quoted[i] != '\\':
			case i+1 == len(quoted):
				return nil, errUnread
			case strings.IndexByte("\"\\`$", quoted[i+1]) >= 0:
				i++
			}
			text.WriteByte(quoted[i])
		}
		return SplitWords(text.String())
	}
	if strings.ContainsAny(given, `'"\`) {
		return nil, errUnread
	}
	return SplitWords(given)
}

// SplitWords splits a variable as a command line does: "COMMAND LINES" in systemd.service(5).
func SplitWords(text string) (words []string, err error) {
	var word strings.Builder
	inWord, quote := false, byte(0)
	for i := 0; i < len(text); i++ {
		c := text[i]
		isBlank := quote == 0 && (c == ' ' || c == '\t')
		if isBlank && inWord {
			words = append(words, word.String())
			word.Reset()
		}
		inWord = !isBlank
		switch {
		case isBlank:
		case c == '\\':
			if i++; i == len(text) {
				return nil, errQuote
			}
			word.WriteByte(text[i])
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		default:
			word.WriteByte(c)
		}
	}
	if quote != 0 {
		return nil, errQuote
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}
