package main

import (
	"bytes"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// failTask makes tasks fail: the next Times of that method (0: one), after Skip that do not.
type failTask struct {
	Method string `json:"method"` // CreateVM_Task …; "" any
	Fault  string `json:"fault"`  // a fault's type, e.g. InsufficientMemoryResourcesFault
	Times  int    `json:"times"`
	Skip   int    `json:"skip"`
}

// work is what a task does: its result, or why it failed.
type work func() (types.AnyType, types.BaseMethodFault)

// task answers a method that returns a task: one of ours where it shall fail, take its time or do
// what the simulator leaves out.
func (f *front) task(w http.ResponseWriter, r *http.Request, q request) {
	f.count("tasks", 1)
	takes := f.snapshot().TaskS
	do := f.vmWork(q)
	fault, fails := f.failing(q.method)
	switch {
	case fails:
		do = func() (types.AnyType, types.BaseMethodFault) { return nil, fault }
	case do == nil && takes == 0:
		f.forward(w, r, q)
		return
	case do == nil:
		do = func() (types.AnyType, types.BaseMethodFault) { return f.innerWork(q) }
	}
	on := simulator.Map.Get(entityRef(q.this))
	if on == nil {
		f.forward(w, r, q)
		return
	}
	task := simulator.CreateTask(on, strings.TrimSuffix(q.method, "_Task"),
		func(*simulator.Task) (types.AnyType, types.BaseMethodFault) { return do() })
	if takes == 0 {
		task.Run()
	} else {
		go runSlowly(task, takes)
	}
	writeAnswer(w, q.method+"Response", `<returnval type="Task">`+task.Self.Value+`</returnval>`)
}

// runSlowly shows a task's progress before it does its work.
func runSlowly(task *simulator.Task, takesS float64) {
	const steps = 10
	update := func(name string, value interface{}) {
		simulator.Map.WithLock(task, func() {
			simulator.Map.Update(task, []types.PropertyChange{{Name: name, Val: value}})
		})
	}
	update("info.startTime", time.Now())
	update("info.state", types.TaskInfoStateRunning)
	for i := 0; i < steps; i++ {
		update("info.progress", int32(i*100/steps))
		time.Sleep(seconds(takesS / steps))
	}
	task.Run()
}

// failing takes the first rule that is for this method, and uses it up.
func (f *front) failing(method string) (types.BaseMethodFault, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	rules := append([]failTask(nil), f.state.FailTasks...)
	for i := range rules {
		if rules[i].Method != "" && rules[i].Method != method {
			continue
		}
		fault := rules[i].Fault
		use := rules[i].Skip == 0
		if !use {
			rules[i].Skip--
		} else if rules[i].Times--; rules[i].Times <= 0 {
			rules = append(rules[:i], rules[i+1:]...)
		}
		f.state.FailTasks = rules
		if use {
			return newFault(fault), true
		}
		return nil, false
	}
	return nil, false
}

func newFault(name string) types.BaseMethodFault {
	if kind, ok := types.TypeFunc()(name); ok {
		if fault, ok := reflect.New(kind).Interface().(types.BaseMethodFault); ok {
			return fault
		}
	}
	return &types.GenericVmConfigFault{Reason: name}
}

// innerWork lets the simulator do a task and tells how it went. It asks in a session of its own:
// that of the client may be over before the task is.
func (f *front) innerWork(q request) (types.AnyType, types.BaseMethodFault) {
	recorded := f.askInner(f.ownLogin(), string(q.body))
	if recorded.Code != http.StatusOK {
		return nil, faultIn(recorded.Body.Bytes())
	}
	ref := types.ManagedObjectReference{Type: "Task", Value: returned(recorded.Body.Bytes())}
	inner, ok := simulator.Map.Get(ref).(*simulator.Task)
	if !ok {
		return nil, &types.GenericVmConfigFault{Reason: "the simulator's task is gone"}
	}
	return outcome(inner)
}

func outcome(task *simulator.Task) (types.AnyType, types.BaseMethodFault) {
	if failed := task.Info.Error; failed != nil {
		return nil, failed.Fault
	}
	return task.Info.Result, nil
}

func faultIn(answer []byte) types.BaseMethodFault {
	var envelope struct {
		Body struct {
			Fault *soap.Fault `xml:"http://schemas.xmlsoap.org/soap/envelope/ Fault"`
		}
	}
	decoder := xml.NewDecoder(bytes.NewReader(answer))
	decoder.TypeFunc = types.TypeFunc()
	err := decoder.Decode(&envelope)
	if err == nil && envelope.Body.Fault != nil {
		if fault, ok := envelope.Body.Fault.VimFault().(types.BaseMethodFault); ok {
			return fault
		}
		return &types.GenericVmConfigFault{Reason: envelope.Body.Fault.String}
	}
	return &types.GenericVmConfigFault{Reason: fmt.Sprintf("no fault in the answer: %v", err)}
}
