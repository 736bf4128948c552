package main

import (
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// mutation is one change of a file: the bytes from start to end become text.
type mutation struct {
	pkg, file  string
	line       int
	content    []byte
	start, end int
	text       string
}

func (m *mutation) source() []byte {
	return []byte(string(m.content[:m.start]) + m.text + string(m.content[m.end:]))
}

// lines are the line of the change before and after it, without indentation.
func (m *mutation) lines() (before, after string) {
	first := strings.LastIndexByte(string(m.content[:m.start]), '\n') + 1
	last := m.end + strings.IndexByte(string(m.content[m.end:])+"\n", '\n')
	flat := func(text string) string { return strings.Join(strings.Fields(text), " ") }
	return flat(string(m.content[first:last])), flat(string(m.content[first:m.start]) + m.text + string(m.content[m.end:last]))
}

func (m *mutation) String() string {
	before, after := m.lines()
	return fmt.Sprintf("%s:%d: %s  ->  %s", m.file, m.line, before, after)
}

// key is what stays the same when lines are put in front.
func (m *mutation) key() string {
	before, after := m.lines()
	return fmt.Sprintf("%s: %s  ->  %s", m.file, before, after)
}

func mutationsOf(packages []string) (all []*mutation, err error) {
	for _, pkg := range packages {
		found, err := build.ImportDir(pkg, 0)
		if err != nil {
			return nil, err
		}
		for _, name := range found.GoFiles {
			file := filepath.Join(pkg, name)
			content, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			set := token.NewFileSet()
			tree, err := parser.ParseFile(set, file, content, parser.SkipObjectResolution)
			if err != nil {
				return nil, err
			}
			at := func(from, to token.Pos, text string) {
				position := set.Position(from)
				all = append(all, &mutation{pkg, file, position.Line, content, position.Offset, set.Position(to).Offset, text})
			}
			source := func(node ast.Node) string {
				return string(content[set.Position(node.Pos()).Offset:set.Position(node.End()).Offset])
			}
			ast.Inspect(tree, func(node ast.Node) bool { return mutate(node, source, at) })
		}
	}
	return all, nil
}

// operators are what an operator may be mistaken for.
var operators = map[token.Token]token.Token{
	token.LSS: token.LEQ, token.LEQ: token.LSS, token.GTR: token.GEQ, token.GEQ: token.GTR, token.EQL: token.NEQ, token.NEQ: token.EQL,
	token.LAND: token.LOR, token.LOR: token.LAND, token.ADD: token.SUB, token.SUB: token.ADD, token.MUL: token.QUO, token.QUO: token.MUL,
	token.AND: token.OR, token.OR: token.AND,
}

// mutate finds the changes that are possible at a node.
func mutate(node ast.Node, source func(ast.Node) string, at func(from, to token.Pos, text string)) (deeper bool) {
	switch n := node.(type) {
	case *ast.BinaryExpr:
		if other, ok := operators[n.Op]; ok && !isText(n.X) && !isText(n.Y) {
			at(n.OpPos, n.OpPos+token.Pos(len(n.Op.String())), other.String())
		}
	case *ast.IfStmt:
		at(n.Cond.Pos(), n.Cond.End(), "!("+source(n.Cond)+")")
	case *ast.BasicLit:
		if n.Kind == token.INT {
			if number, err := strconv.ParseInt(n.Value, 0, 64); err == nil {
				at(n.Pos(), n.End(), strconv.FormatInt(number+1, 10))
			}
		}
	case *ast.ExprStmt: // a call whose result is not wanted
		at(n.Pos(), n.End(), "_ = 0")
	case *ast.IncDecStmt:
		at(n.Pos(), n.End(), "_ = 0")
	case *ast.AssignStmt:
		if n.Tok != token.DEFINE {
			at(n.Pos(), n.End(), "_ = 0")
		}
	case *ast.ReturnStmt:
		for _, result := range n.Results {
			if name, ok := result.(*ast.Ident); ok {
				switch name.Name {
				case "err", "errno":
					at(result.Pos(), result.End(), map[string]string{"err": "nil", "errno": "0"}[name.Name])
				case "true":
					at(result.Pos(), result.End(), "false")
				case "false":
					at(result.Pos(), result.End(), "true")
				}
			}
		}
	case *ast.BranchStmt:
		if n.Tok == token.BREAK && n.Label == nil || n.Tok == token.CONTINUE {
			at(n.Pos(), n.End(), "_ = 0")
		}
	case *ast.ImportSpec, *ast.StructType: // tags, and paths
		return false
	}
	return true
}

func isText(e ast.Expr) bool {
	literal, ok := e.(*ast.BasicLit)
	return ok && literal.Kind == token.STRING
}
