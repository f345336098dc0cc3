package main

import (
	"bytes"
	"strings"
)

// scanner walks over the elements of a SOAP request without a general XML decoder, which would
// cost more than the answers. It knows elements, attributes, text and the five named entities:
// all that the clients of the tests send.
type scanner struct {
	data []byte
	at   int
}

type token struct {
	name  string // of the element, without its prefix
	attrs []byte
	open  bool // an opening tag; a closing one otherwise
	empty bool // <name/>
	text  string
}

// next returns the following tag, with the text that stood before it.
func (s *scanner) next() (token, bool) {
	for {
		start := bytes.IndexByte(s.data[s.at:], '<')
		if start < 0 {
			return token{}, false
		}
		text := s.data[s.at : s.at+start]
		from := s.at + start + 1
		length := bytes.IndexByte(s.data[from:], '>')
		if length < 0 {
			return token{}, false
		}
		tag := s.data[from : from+length]
		s.at = from + length + 1
		if len(tag) == 0 || tag[0] == '?' || tag[0] == '!' {
			continue
		}
		return readTag(tag, text), true
	}
}

func readTag(tag []byte, text []byte) token {
	t := token{open: true, text: unescape(text)}
	if tag[0] == '/' {
		t.open = false
		tag = tag[1:]
	} else if tag[len(tag)-1] == '/' {
		t.empty = true
		tag = tag[:len(tag)-1]
	}
	name := tag
	if space := bytes.IndexAny(tag, " \t\r\n"); space >= 0 {
		name, t.attrs = tag[:space], tag[space:]
	}
	if colon := bytes.IndexByte(name, ':'); colon >= 0 {
		name = name[colon+1:]
	}
	t.name = string(name)
	return t
}

// attr returns the value of an attribute by its local name, "" if there is none.
func (t token) attr(name string) string {
	rest := string(t.attrs)
	for {
		at := strings.Index(rest, name)
		if at < 0 {
			return ""
		}
		before := at == 0 || strings.ContainsRune(" \t\r\n:", rune(rest[at-1]))
		rest = rest[at+len(name):]
		if !before || len(rest) < 2 || rest[0] != '=' {
			continue
		}
		end := strings.IndexByte(rest[2:], rest[1])
		if end < 0 {
			return ""
		}
		return unescape([]byte(rest[2 : 2+end]))
	}
}

func unescape(text []byte) string {
	if bytes.IndexByte(text, '&') < 0 {
		return string(text)
	}
	return strings.NewReplacer("&lt;", "<", "&gt;", ">", "&quot;", `"`, "&apos;", "'", "&amp;", "&").
		Replace(string(text))
}

// element is a small tree, for requests whose size does not matter.
type element struct {
	name     string
	kind     string // xsi:type or type
	text     string
	children []*element
}

func (s *scanner) element(opening token) *element {
	e := &element{name: opening.name, kind: opening.attr("type")}
	if opening.empty {
		return e
	}
	for {
		t, ok := s.next()
		if !ok {
			return e
		}
		if !t.open {
			e.text = t.text
			return e
		}
		e.children = append(e.children, s.element(t))
	}
}

func (e *element) all(name string) []*element {
	var found []*element
	for _, child := range e.children {
		if child.name == name {
			found = append(found, child)
		}
	}
	return found
}

func (e *element) child(name string) *element {
	for _, child := range e.children {
		if child.name == name {
			return child
		}
	}
	return nil
}

// value is the text of a child, "" without one.
func (e *element) value(name string) string {
	if child := e.child(name); child != nil {
		return strings.TrimSpace(child.text)
	}
	return ""
}

// request is one call of the API as the front sees it.
type request struct {
	method string
	this   reference
	body   []byte
	at     int // where the method's element is behind its opening tag
}

type reference struct {
	kind  string
	value string
}

func parseRequest(body []byte) (request, bool) {
	s := scanner{data: body}
	for {
		t, ok := s.next()
		if !ok {
			return request{}, false
		}
		if t.open && t.name == "Body" {
			break
		}
	}
	method, ok := s.next()
	if !ok || !method.open {
		return request{}, false
	}
	r := request{method: method.name, body: body, at: s.at}
	if this, ok := s.next(); ok && this.open && this.name == "_this" {
		r.this.kind = this.attr("type")
		if value, ok := s.next(); ok {
			r.this.value = value.text
		}
	}
	return r, true
}

// tree is the method's element with everything in it.
func (r request) tree() *element {
	s := scanner{data: r.body, at: r.at}
	return s.element(token{name: r.method, open: true})
}
