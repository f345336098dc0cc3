package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"

	"github.com/vmware/govmomi/simulator"
	vapi "github.com/vmware/govmomi/vapi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// shelf is a content library that /control puts there, with its items.
type shelf struct {
	Name      string `json:"name"`
	Datastore string `json:"datastore"` // "": any
	Items     []book `json:"items"`
}

// book is an item: an OVF with one disk, a VM template made of a VM, or a file of no use for VMs.
type book struct {
	Name    string `json:"name"`
	Type    string `json:"type"` // ovf, vm-template or iso
	Source  string `json:"source"`
	DiskGiB int    `json:"disk_gib"`
	Hidden  bool   `json:"hidden"` // the server does not say which template it is, as before API 7.0
}

// openLibraries starts govmomi's vAPI simulator, and the SOAP server that it deploys through.
func (f *front) openLibraries() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() { _ = http.Serve(listener, http.HandlerFunc(f.serveBackend)) }()
	_, f.vapi = vapi.New(&url.URL{
		Scheme: "http",
		Host:   listener.Addr().String(),
		Path:   "/sdk",
		User:   url.UserPassword("vapi", "vapi"),
	}, nil)
	f.vapiSession, err = f.askREST(http.MethodPost, restSession, nil)
	return err
}

// serveBackend is the simulator as the vAPI one sees it, with what that one leaves out.
func (f *front) serveBackend(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	q, ok := parseRequest(body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	switch {
	case ok && q.method == "ImportVApp":
		f.importVApp(w, r, q)
	case ok && q.method == "HttpNfcLeaseComplete":
		f.completeLease(w, r, q)
	case ok && q.method == "CloneVM_Task":
		f.cloneTemplate(w, q)
	default:
		f.inner.ServeHTTP(w, r)
	}
}

// importVApp makes the VM of an OVF, with its annotation; it is there before its disks are.
func (f *front) importVApp(w http.ResponseWriter, r *http.Request, q request) {
	if fault, fails := f.failing(q.method); fails {
		writeFault(w, fmt.Sprintf("%T", fault), "GenericVmConfigFault", "")
		return
	}
	name := textAfter(q.body, "<configSpec><name>")
	f.mu.Lock()
	asked := f.deploying[name]
	f.mu.Unlock()
	for _, e := range simulator.Map.All("VirtualMachine") {
		if nameOf(e) == name { // the simulator's own refusal is without a word
			writeFault(w, "The name '"+name+"' already exists.", "DuplicateName", "<name>"+escape(name)+"</name>")
			return
		}
	}
	q.body = bytes.Replace(q.body, []byte("<configSpec>"),
		[]byte("<configSpec><annotation>"+escape(asked.annotation)+"</annotation>"), 1)
	recorded := f.record(r, q)
	if vm, ok := byName("VirtualMachine", name).(*simulator.VirtualMachine); ok {
		defaults := types.DefaultResourceConfigSpec()
		vm.Config.CpuAllocation, vm.Config.MemoryAllocation = &defaults.CpuAllocation, &defaults.MemoryAllocation
	}
	if takes := f.snapshot().TaskS; takes > 0 && recorded.Code == http.StatusOK {
		task := simulator.CreateTask(simulator.Map.Get(entityRef(q.this)), "importVApp",
			func(*simulator.Task) (types.AnyType, types.BaseMethodFault) { return nil, nil })
		done := make(chan struct{})
		go func() {
			runSlowly(task, takes)
			close(done)
		}()
		f.mu.Lock()
		f.transfers[returned(recorded.Body.Bytes())] = transfer{done, asked.client, name}
		f.mu.Unlock()
	}
	replay(w, recorded)
}

// transfer is a copy of disks that goes on, for a client that may have left.
type transfer struct {
	done   chan struct{}
	client context.Context
	vm     string
}

// completeLease answers when the disks of an OVF are copied; where the server minds that its client
// has left, the VM is removed and the import fails.
func (f *front) completeLease(w http.ResponseWriter, r *http.Request, q request) {
	f.mu.Lock()
	running, found := f.transfers[q.this.value]
	delete(f.transfers, q.this.value)
	f.mu.Unlock()
	if found {
		left := running.client.Done()
		if !f.snapshot().RollBack {
			left = nil
		}
		select {
		case <-running.done:
		case <-left:
			removeVM(running.vm)
			writeFault(w, "The import was aborted.", "RequestCanceled", "")
			return
		}
	}
	f.inner.ServeHTTP(w, r)
}

func removeVM(name string) {
	if vm, ok := byName("VirtualMachine", name).(*simulator.VirtualMachine); ok {
		simulator.Map.WithLock(vm, func() {
			vm.DestroyTask(ownContext(vm.Self), &types.Destroy_Task{This: vm.Self})
		})
	}
}

func (f *front) cloneTemplate(w http.ResponseWriter, q request) {
	do := f.vmWork(q)
	task := simulator.CreateTask(simulator.Map.Get(entityRef(q.this)), "CloneVM",
		func(*simulator.Task) (types.AnyType, types.BaseMethodFault) { return do() })
	task.Run()
	writeAnswer(w, q.method+"Response", `<returnval type="Task">`+task.Self.Value+`</returnval>`)
}

func textAfter(body []byte, mark string) string {
	_, rest, _ := strings.Cut(string(body), mark)
	text, _, _ := strings.Cut(rest, "<")
	return text
}

// addLibrary makes a library and its items through the vAPI simulator itself.
func (f *front) addLibrary(s shelf) error {
	if s.Datastore == "" {
		s.Datastore = "LocalDS_0"
	}
	store := byName("Datastore", s.Datastore)
	if store == nil {
		return fmt.Errorf("no datastore %q", s.Datastore)
	}
	library, err := f.askREST(http.MethodPost, "/rest/com/vmware/content/local-library",
		fields{"create_spec": fields{"name": s.Name, "type": "LOCAL", "storage_backings": []fields{
			{"type": "DATASTORE", "datastore_id": store.Reference().Value}}}})
	for i := 0; err == nil && i < len(s.Items); i++ {
		if s.Items[i].Type == "vm-template" {
			err = f.addTemplate(library, store.Reference().Value, s.Items[i])
		} else {
			err = f.addFile(library, s.Items[i])
		}
	}
	return err
}

type fields map[string]interface{}

func (f *front) addTemplate(library, store string, b book) error {
	source, ok := byName("VirtualMachine", b.Source).(*simulator.VirtualMachine)
	if !ok {
		return fmt.Errorf("no virtual machine %q", b.Source)
	}
	item, err := f.askREST(http.MethodPost, strings.TrimSuffix(restTemplates, "/"), fields{
		"spec": fields{"name": b.Name, "library": library, "source_vm": source.Self.Value, "placement": fields{
			"folder": source.Parent.Value, "host": source.Runtime.Host.Value}}})
	if err != nil {
		return err
	}
	template, ok := byName("VirtualMachine", b.Name).(*simulator.VirtualMachine)
	if !ok {
		return fmt.Errorf("the template of item %q was not made", b.Name)
	}
	template.ResourcePool = nil
	f.mu.Lock()
	defer f.mu.Unlock()
	f.templates[item] = template.Self.Value
	if b.Hidden {
		f.templates[item] = ""
	}
	return nil
}

func (f *front) addFile(library string, b book) error {
	item, err := f.askREST(http.MethodPost, "/rest/com/vmware/content/library/item",
		fields{"create_spec": fields{"name": b.Name, "type": b.Type, "library_id": library}})
	if err != nil || b.Type != "ovf" {
		return err
	}
	update, err := f.askREST(http.MethodPost, "/rest/com/vmware/content/library/item/update-session",
		fields{"create_spec": fields{"library_item_id": item}})
	if err != nil {
		return err
	}
	answer, err := f.askREST(http.MethodPost,
		"/rest/com/vmware/content/library/item/updatesession/file/id:"+update+"?~action=add",
		fields{"file_spec": fields{"name": b.Name + ".ovf", "source_type": "PUSH"}})
	if err != nil {
		return err
	}
	at, err := url.Parse(textAfter([]byte(strings.ReplaceAll(answer, `"`, "<")), "uri<:<"))
	if err != nil {
		return err
	}
	if _, err := f.askREST(http.MethodPut, at.Path, descriptor(b)); err != nil {
		return err
	}
	_, err = f.askREST(http.MethodPost,
		"/rest/com/vmware/content/library/item/update-session/id:"+update+"?~action=complete", nil)
	return err
}

// askREST asks the vAPI simulator for the front itself; a value that is no string comes as JSON.
func (f *front) askREST(method, path string, body interface{}) (string, error) {
	var content []byte
	if text, ok := body.(string); ok {
		content = []byte(text)
	} else if body != nil {
		content, _ = json.Marshal(body)
	}
	r := httptest.NewRequest(method, path, bytes.NewReader(content))
	r.SetBasicAuth("front", "front")
	recorded := httptest.NewRecorder()
	f.askVAPI(recorded, r)
	if recorded.Code != http.StatusOK {
		return "", fmt.Errorf("%s %s: %d %s", method, path, recorded.Code, recorded.Body)
	}
	var answer struct{ Value json.RawMessage }
	_ = json.Unmarshal(recorded.Body.Bytes(), &answer)
	var text string
	if json.Unmarshal(answer.Value, &text) != nil {
		text = string(answer.Value)
	}
	return text, nil
}

// descriptor is an OVF with one disk and one network card.
func descriptor(b book) string {
	return fmt.Sprintf(`<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
 xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
<References><File ovf:href="disk-0.vmdk" ovf:id="file0" ovf:size="1"/></References>
<DiskSection><Info>disks</Info><Disk ovf:capacity="%d" ovf:capacityAllocationUnits="byte * 2^30"
 ovf:diskId="disk0" ovf:fileRef="file0"/></DiskSection>
<NetworkSection><Info>networks</Info><Network ovf:name="nat"><Description/></Network></NetworkSection>
<VirtualSystem ovf:id="%s"><Info>a VM</Info><Name>%s</Name>
<OperatingSystemSection ovf:id="96"><Info>guest</Info></OperatingSystemSection>
<VirtualHardwareSection><Info>hardware</Info>
<System><vssd:ElementName>virtual</vssd:ElementName><vssd:InstanceID>0</vssd:InstanceID>
<vssd:VirtualSystemIdentifier>%s</vssd:VirtualSystemIdentifier>
<vssd:VirtualSystemType>vmx-15</vssd:VirtualSystemType></System>
<Item><rasd:ElementName>2 CPUs</rasd:ElementName><rasd:InstanceID>1</rasd:InstanceID>
<rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
<Item><rasd:ElementName>memory</rasd:ElementName><rasd:InstanceID>2</rasd:InstanceID>
<rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>512</rasd:VirtualQuantity></Item>
<Item><rasd:Address>0</rasd:Address><rasd:ElementName>scsi</rasd:ElementName><rasd:InstanceID>3</rasd:InstanceID>
<rasd:ResourceSubType>VirtualSCSI</rasd:ResourceSubType><rasd:ResourceType>6</rasd:ResourceType></Item>
<Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:ElementName>disk1</rasd:ElementName>
<rasd:HostResource>ovf:/disk/disk0</rasd:HostResource><rasd:InstanceID>4</rasd:InstanceID>
<rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
<Item><rasd:ElementName>nic</rasd:ElementName><rasd:Connection>nat</rasd:Connection>
<rasd:InstanceID>5</rasd:InstanceID><rasd:ResourceSubType>VmxNet3</rasd:ResourceSubType>
<rasd:ResourceType>10</rasd:ResourceType></Item>
</VirtualHardwareSection></VirtualSystem></Envelope>`,
		atLeast(1, b.DiskGiB), b.Name, b.Name, b.Name)
}

func atLeast(a, b int) int {
	if b > a {
		return b
	}
	return a
}
