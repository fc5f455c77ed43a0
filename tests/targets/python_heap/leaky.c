/*
 * A module that leaks by plan: each function leaves one block, or one object, that nobody will ever free.
 *
 * Compiled once, for the stable ABI of CPython 3.8, and loaded by every later version. The functions of the
 * raw domain are exported by all of them, though the stable ABI names them from 3.13 on only.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x03080000
#include <Python.h>

#include <stdlib.h>
#include <string.h>

void *PyMem_RawMalloc(size_t);
void *PyMem_RawCalloc(size_t, size_t);
void *PyMem_RawRealloc(void *, size_t);

/* Keeps the compiler from leaving out an allocation whose block nobody uses. */
static void *volatile last;

/* A block is written to in full, so that its memory is the process's own. */
static PyObject *forget(void *block, size_t size)
{
	if (block == NULL)
		return PyErr_NoMemory();
	memset(block, 0x5a, size);
	last = block;
	Py_RETURN_NONE;
}

#define LEAKS_A_BLOCK(name, call)                                                                           \
	static PyObject *name(PyObject *module, PyObject *argument)                                         \
	{                                                                                                   \
		size_t size = PyLong_AsSize_t(argument);                                                    \
		(void)module;                                                                               \
		return PyErr_Occurred() ? NULL : forget(call, size);                                        \
	}

LEAKS_A_BLOCK(leak_malloc, malloc(size))
LEAKS_A_BLOCK(leak_raw_malloc, PyMem_RawMalloc(size))
LEAKS_A_BLOCK(leak_raw_calloc, PyMem_RawCalloc(1, size))
LEAKS_A_BLOCK(leak_raw_realloc, PyMem_RawRealloc(PyMem_RawMalloc(24), size))
LEAKS_A_BLOCK(leak_mem_malloc, PyMem_Malloc(size))
LEAKS_A_BLOCK(leak_mem_calloc, PyMem_Calloc(1, size))
LEAKS_A_BLOCK(leak_mem_realloc, PyMem_Realloc(PyMem_Malloc(24), size))
LEAKS_A_BLOCK(leak_object_malloc, PyObject_Malloc(size))
LEAKS_A_BLOCK(leak_object_calloc, PyObject_Calloc(1, size))
LEAKS_A_BLOCK(leak_object_realloc, PyObject_Realloc(PyObject_Malloc(24), size))
/* From a block of libc: 600 bytes are none of pymalloc's. */
LEAKS_A_BLOCK(leak_object_realloc_large, PyObject_Realloc(PyObject_Malloc(600), size))
/* Small enough a change that pymalloc leaves the block where it is. */
LEAKS_A_BLOCK(leak_object_realloc_in_place, PyObject_Realloc(PyObject_Malloc(size + 3), size))

/* The reference that a function owns and forgets. */
static PyObject *forget_reference(PyObject *object)
{
	if (object == NULL)
		return NULL;
	last = object;
	Py_RETURN_NONE;
}

static PyObject *leak_dict(PyObject *module, PyObject *unused)
{
	(void)module, (void)unused;
	return forget_reference(PyDict_New());
}

static PyObject *leak_dict_with_item(PyObject *module, PyObject *key)
{
	PyObject *dict = PyDict_New();

	(void)module;
	if (dict == NULL || PyDict_SetItem(dict, key, Py_None) != 0)
		return NULL;
	return forget_reference(dict);
}

static PyObject *leak_list(PyObject *module, PyObject *unused)
{
	(void)module, (void)unused;
	return forget_reference(PyList_New(0));
}

static PyObject *leak_list_with_items(PyObject *module, PyObject *item)
{
	PyObject *list = PyList_New(3);

	(void)module;
	if (list == NULL)
		return NULL;
	for (Py_ssize_t index = 0; index < 3; index++) {
		Py_IncRef(item);
		PyList_SetItem(list, index, item);
	}
	return forget_reference(list);
}

static PyObject *leak_tuple(PyObject *module, PyObject *item)
{
	(void)module;
	return forget_reference(PyTuple_Pack(3, item, item, item));
}

static PyObject *leak_str(PyObject *module, PyObject *unused)
{
	char text[101];

	(void)module, (void)unused;
	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = 0;
	return forget_reference(PyUnicode_FromString(text));
}

static PyObject *leak_bytes(PyObject *module, PyObject *size)
{
	size_t count = PyLong_AsSize_t(size);

	(void)module;
	return PyErr_Occurred() ? NULL : forget_reference(PyBytes_FromStringAndSize(NULL, (Py_ssize_t)count));
}

static PyObject *leak_float(PyObject *module, PyObject *unused)
{
	(void)module, (void)unused;
	return forget_reference(PyFloat_FromDouble(0.5));
}

static PyObject *leak_int(PyObject *module, PyObject *unused)
{
	(void)module, (void)unused;
	return forget_reference(PyLong_FromUnsignedLongLong(1ULL << 62));
}

/* An instance of a class, with two attributes. */
static PyObject *leak_instance(PyObject *module, PyObject *class)
{
	PyObject *object = PyObject_CallObject(class, NULL);

	(void)module;
	if (object == NULL || PyObject_SetAttrString(object, "one", Py_None) != 0 ||
	    PyObject_SetAttrString(object, "two", Py_None) != 0)
		return NULL;
	return forget_reference(object);
}

/* One reference too many: the object is the caller's, who made it. */
static PyObject *leak_reference(PyObject *module, PyObject *object)
{
	(void)module;
	Py_IncRef(object);
	return forget_reference(object);
}

#define METHOD(name, flags) { #name, leak_##name, flags, NULL }

static PyMethodDef methods[] = {
	METHOD(malloc, METH_O),
	METHOD(raw_malloc, METH_O),
	METHOD(raw_calloc, METH_O),
	METHOD(raw_realloc, METH_O),
	METHOD(mem_malloc, METH_O),
	METHOD(mem_calloc, METH_O),
	METHOD(mem_realloc, METH_O),
	METHOD(object_malloc, METH_O),
	METHOD(object_calloc, METH_O),
	METHOD(object_realloc, METH_O),
	METHOD(object_realloc_large, METH_O),
	METHOD(object_realloc_in_place, METH_O),
	METHOD(dict, METH_NOARGS),
	METHOD(dict_with_item, METH_O),
	METHOD(list, METH_NOARGS),
	METHOD(list_with_items, METH_O),
	METHOD(tuple, METH_O),
	METHOD(str, METH_NOARGS),
	METHOD(bytes, METH_O),
	METHOD(float, METH_NOARGS),
	METHOD(int, METH_NOARGS),
	METHOD(instance, METH_O),
	METHOD(reference, METH_O),
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef definition = { PyModuleDef_HEAD_INIT, "leaky", NULL, -1, methods, NULL, NULL, NULL, NULL };

PyMODINIT_FUNC PyInit_leaky(void)
{
	return PyModule_Create(&definition);
}
