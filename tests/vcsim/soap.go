package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

const envelopeHead = `<?xml version="1.0" encoding="UTF-8"?>
<soapenv:Envelope xmlns:soapenc="http://schemas.xmlsoap.org/soap/encoding/" ` +
	`xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" ` +
	`xmlns:xsd="http://www.w3.org/2001/XMLSchema" ` +
	`xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>`
const envelopeTail = `</soapenv:Body></soapenv:Envelope>`

func writeAnswer(w http.ResponseWriter, name string, inside string) {
	w.Header().Set("Content-Type", `text/xml; charset="utf-8"`)
	_, _ = io.WriteString(w, envelopeHead)
	_, _ = fmt.Fprintf(w, `<%s xmlns="urn:vim25">%s</%s>`, name, inside, name)
	_, _ = io.WriteString(w, envelopeTail)
}

func writeFault(w http.ResponseWriter, text string, kind string, inside string) {
	w.Header().Set("Content-Type", `text/xml; charset="utf-8"`)
	w.WriteHeader(http.StatusInternalServerError)
	_, _ = io.WriteString(w, envelopeHead)
	_, _ = fmt.Fprintf(w, `<soapenv:Fault><faultcode>ServerFaultCode</faultcode>`+
		`<faultstring>%s</faultstring><detail><%sFault xmlns="urn:vim25" xsi:type="%s">%s</%sFault>`+
		`</detail></soapenv:Fault>`, escape(text), kind, kind, inside, kind)
	_, _ = io.WriteString(w, envelopeTail)
}

var escaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;")

func escape(text string) string { return escaper.Replace(text) }

// writeValue answers with a value of the simulator's types.
func writeValue(w http.ResponseWriter, name string, value interface{}) {
	var text bytes.Buffer
	start := xml.StartElement{Name: xml.Name{Space: "urn:vim25", Local: name}}
	if err := xml.NewEncoder(&text).EncodeElement(value, start); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", `text/xml; charset="utf-8"`)
	_, _ = io.WriteString(w, envelopeHead+text.String()+envelopeTail)
}

// copyOf copies a value of the simulator's types through its XML.
func copyOf(from interface{}, to interface{}) error {
	var text bytes.Buffer
	if err := xml.NewEncoder(&text).Encode(from); err != nil {
		return err
	}
	decoder := xml.NewDecoder(&text)
	decoder.TypeFunc = types.TypeFunc()
	return decoder.Decode(to)
}
